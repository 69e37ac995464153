// The tables of RoPE in a GPU's memory.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/cuda_device.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/kernels.h"

namespace kvfold {

class CudaRope {
 public:
  // Whether send() would do anything: other tables, or such as reach further, than were sent before. Told by
  // what they are made of: where they lie tells nothing, as another model's may come to lie there.
  bool differs(const RopeView& rope) const {
    return rope.distances != view_.distances || rope.interleaved != view_.interleaved ||
           !std::equal(frequencies_.begin(), frequencies_.end(), rope.frequencies,
                       rope.frequencies + rope.pairs);
  }
  // Errors: no memory; the device's. The stream must be idle. What view() gave before is not valid any more.
  Status send(const RopeView& rope, cudaStream_t stream);
  const cuda::DeviceRope& view() const { return view_; }

 private:
  DeviceMemory memory_;
  cuda::DeviceRope view_{};
  std::vector<double> frequencies_;  // of the tables that were sent
};

}  // namespace kvfold
