// How much of a GPU's memory a model takes, known before any of it is asked for: one allocation for weights,
// activations and scratch memory, in pieces (DeviceArena), and one for the pages of caches. Beside them the
// page tables and tables of angles of a batch grow with its caches; they, the driver and what cuBLAS keeps
// for itself find room in what is left free.
#pragma once

#include <cstdint>
#include <string>

#include "engine/backend.h"
#include "engine/backends.h"
#include "engine/model_source.h"

namespace kvfold {

// A driver gives memory out in chunks.
inline constexpr size_t kGpuChunkBytes = size_t{2} << 20;
inline size_t gpu_chunks(size_t bytes) {
  return (bytes + kGpuChunkBytes - 1) / kGpuChunkBytes * kGpuChunkBytes;
}
// What a piece takes of an arena: it begins at a multiple of 256, as an allocation of CUDA's does, and behind
// it is a gap that belongs to nobody, where a sanitizer sees who reaches too far.
inline size_t arena_bytes(size_t bytes) { return (bytes + 255) / 256 * 256 + 256; }

inline constexpr size_t kGpuAttentionBytes = size_t{32} << 20;  // for partial results of attention
// NVIDIA's advice before Hopper. A handle would choose for itself, by card.
inline constexpr size_t kBlasWorkspaceBytes = size_t{4} << 20;

// Scratch memory of the CUDA backend, in bytes.
struct GpuScratch {
  size_t keys;       // of the likeliest tokens
  size_t q, scales;  // quantised activations
  size_t gate, up;
  size_t normed;    // activations in f32
  size_t partials;  // of attention
  // With cuBLAS alone: a weight in f32, a product before it is added up, cuBLAS' own.
  size_t decoded, blas_out, workspace;
};
// For passes of at most `rows` tokens.
GpuScratch gpu_scratch(const ModelSource& source, int rows, Prefill prefill);

// What is taken out of an arena, gaps and all.
struct GpuPlan {
  size_t weights, activations, scratch, cublas;
  size_t pages;  // whole ones
  // The one allocation for all but the pages.
  size_t arena() const { return gpu_chunks(weights + activations + scratch + cublas); }
};
GpuPlan gpu_plan(const ModelSource& source, int rows, Prefill prefill);  // without pages

struct Gpu {
  std::string name;
  size_t free, total;  // bytes
};
// With as many pages as are wanted and find room. Errors, with every number: the model does not fit what is
// free.
Result<GpuPlan> plan_gpu_memory(const ModelSource& source, const MemoryWanted& wanted, Prefill prefill,
                                const Gpu& gpu);
// The plan in a line.
std::string describe(const GpuPlan& plan, const Gpu& gpu);

}  // namespace kvfold
