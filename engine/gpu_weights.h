// How much of a GPU's memory a model's weights take, known before any of it is asked for.
#pragma once

#include <cstdint>

#include "engine/model_source.h"

namespace kvfold {

// Bytes of all weights as the CUDA backend keeps them: matrices packed (kernels/cuda/packed.h), norms and
// biases as f32.
int64_t gpu_weight_bytes(const ModelSource& source);

}  // namespace kvfold
