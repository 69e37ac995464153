// The CUDA backend: weights, activations and pages in a GPU's memory.
#pragma once

#include "engine/backends.h"

namespace kvfold {

// On the first device. Errors: no driver, no device, one below compute capability 7.5.
Result<std::shared_ptr<Backend>> make_cuda_backend(const BackendOptions& options);

}  // namespace kvfold
