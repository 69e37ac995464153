// The CUDA backend: weights, activations and pages in a GPU's memory.
#pragma once

#include "engine/backends.h"

namespace kvfold {

// Errors: those of CudaDevice::open.
Result<std::shared_ptr<Backend>> make_cuda_backend(const BackendOptions& options);

}  // namespace kvfold
