// A GPU, the stream of work on it, and memory there.
#pragma once

#include <cuda_runtime.h>
#include <fmt/core.h>

#include <cstddef>
#include <memory>
#include <string>

#include "engine/status.h"

namespace kvfold {

inline Status cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return Status::error(fmt::format("cuda: {}: {}", what, cudaGetErrorString(error)));
}

// Kept by all who queue work on it: caches may outlive the backend that made their pages.
class CudaDevice {
 public:
  // The GPU of that number, or, where it is negative, the first that will do. Errors: no driver, no such GPU,
  // one below compute capability 7.5.
  static Result<std::shared_ptr<const CudaDevice>> open(int number);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  int number() const { return number_; }
  const cudaDeviceProp& properties() const { return properties_; }
  // From now on what the calling thread allocates and launches is this device's.
  void make_current() const { cudaSetDevice(number_); }
  // The same, and the stream.
  cudaStream_t stream() const {
    make_current();
    return stream_;
  }

 private:
  CudaDevice(int number, const cudaDeviceProp& properties) : number_(number), properties_(properties) {}

  int number_;
  cudaDeviceProp properties_;
  cudaStream_t stream_ = nullptr;
};

// Bytes on the current device: an allocation of their own, or a piece of an arena.
class DeviceMemory {
 public:
  // At least `bytes`; what was in it is lost when it grows, and its address is another. Nothing of it may be
  // in use by then.
  Status reserve(size_t bytes, const char* what);
  template <class T = std::byte>
  T* get() const {
    return reinterpret_cast<T*>(data_.get());
  }
  // Keeps the memory, as it is.
  template <class T>
  std::shared_ptr<T> share() const {
    return {data_, get<T>()};
  }
  size_t bytes() const { return bytes_; }

 private:
  friend class DeviceArena;
  std::shared_ptr<std::byte> data_;
  size_t bytes_ = 0;
};

// One allocation that is given out from its beginning on, so that what is taken of a GPU is what was planned,
// and not what its driver makes of many small pieces. It goes with the last piece.
class DeviceArena {
 public:
  // Drops what is left of an earlier one. `bytes` is a sum of arena_bytes().
  Status reserve(size_t bytes, const char* what);
  // Memory of its own for what there is no room for.
  Result<DeviceMemory> take(size_t bytes, const char* what);

 private:
  DeviceMemory memory_;
  size_t taken_ = 0;
};

}  // namespace kvfold
