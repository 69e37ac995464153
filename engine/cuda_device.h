// Owned device memory, and the first error of a stream.
#pragma once

#include <cuda_runtime.h>
#include <fmt/core.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "engine/status.h"

namespace kvfold {

inline Status cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return Status::error(fmt::format("cuda: {}: {}", what, cudaGetErrorString(error)));
}

// A stream, kept by all who queue work on it: caches may outlive the backend that made their pages. Null is
// the default stream.
using SharedStream = std::shared_ptr<CUstream_st>;

inline Result<SharedStream> make_stream() {
  cudaStream_t stream = nullptr;
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaStreamCreate(&stream), "making a stream"));
  return SharedStream(stream, [](cudaStream_t s) { cudaStreamDestroy(s); });
}

// Bytes on the device that only grow. Every growth is another address.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(DeviceMemory&& from) noexcept
      : data_(std::exchange(from.data_, nullptr)), bytes_(std::exchange(from.bytes_, 0)) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // At least `bytes`; what was in it is lost when it grows. Nothing of it may be in use by then.
  Status reserve(size_t bytes, const char* what) {
    if (bytes <= bytes_) return {};
    cudaFree(std::exchange(data_, nullptr));
    bytes_ = 0;
    const cudaError_t error = cudaMalloc(&data_, bytes);
    if (error != cudaSuccess) {
      size_t free = 0;
      size_t total = 0;
      cudaGetLastError();  // not a sticky one
      cudaMemGetInfo(&free, &total);
      return Status::error(fmt::format("cuda: no memory for {}: {} bytes wanted, {} of {} free ({})", what,
                                       bytes, free, total, cudaGetErrorString(error)));
    }
    bytes_ = bytes;
    return {};
  }
  template <class T = std::byte>
  T* get() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace kvfold
