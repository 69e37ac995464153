// The tables of RoPE in a GPU's memory.
#pragma once

#include "engine/cuda_device.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/kernels.h"

namespace kvfold {

class CudaRope {
 public:
  // Whether send() would do anything: other tables, or such as reach further, than were sent before.
  bool differs(const RopeView& rope) const {
    return rope.key_cos != source_ || rope.distances != view_.distances;
  }
  // Errors: no memory; the device's. The stream must be idle. What view() gave before is not valid any more.
  Status send(const RopeView& rope, cudaStream_t stream);
  const cuda::DeviceRope& view() const { return view_; }

 private:
  DeviceMemory memory_;
  cuda::DeviceRope view_{};
  const float* source_ = nullptr;
};

}  // namespace kvfold
