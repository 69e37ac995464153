// Memory of the device that a test's kernels run on: the executor's, or a GPU.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <span>
#include <vector>

namespace kvfold::testing {

inline void must(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t count) : count_(count) {
    must(cudaMalloc(reinterpret_cast<void**>(&data_), (count > 0 ? count : 1) * sizeof(T)));
  }
  explicit DeviceBuffer(const std::vector<T>& from) : DeviceBuffer(from.size()) {
    if (count_ > 0) must(cudaMemcpy(data_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* get() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> out(count_);
    must(cudaDeviceSynchronize());
    if (count_ > 0) must(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

}  // namespace kvfold::testing
