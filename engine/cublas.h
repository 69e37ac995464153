// The one call of cuBLAS that prefill may take, found when it is first asked for: a program that never asks
// needs no cuBLAS on its machine.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <span>

#include "engine/status.h"

namespace kvfold {

class Cublas {
 public:
  Cublas() = default;
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // What cuBLAS works in is `workspace`, device memory that stays. Errors: no cuBLAS library, or none that
  // takes the device.
  Status open(cudaStream_t stream, std::span<std::byte> workspace);
  bool is_open() const { return handle_ != nullptr; }
  // y[rows][outputs] = x[rows][columns] w[outputs][columns]^T, all row-major f32.
  Status product(const float* w, const float* x, int rows, int outputs, int columns, float* y);

 private:
  void* handle_ = nullptr;
};

}  // namespace kvfold
