// How much of a GPU's memory a model takes, known before any of it is asked for.
#pragma once

#include <cstdint>
#include <string>

#include "engine/backend.h"
#include "engine/model_source.h"

namespace kvfold {

// Bytes of all weights as the CUDA backend keeps them: matrices packed (kernels/cuda/packed.h), norms and
// biases as f32.
int64_t gpu_weight_bytes(const ModelSource& source);

inline constexpr size_t kGpuAttentionBytes = size_t{32} << 20;  // for partial results of attention

struct Gpu {
  std::string name;
  size_t free, total;  // bytes
};
struct GpuPlan {
  size_t weights, pages, scratch;  // bytes
  std::string text(const Gpu& gpu) const;
};
// Errors, with every number: the model does not fit what is free.
Result<GpuPlan> plan_gpu_memory(const ModelSource& source, const MemoryWanted& wanted, const Gpu& gpu);

}  // namespace kvfold
