// How much memory the CUDA kernels work in beside their arguments, known on any machine.
#pragma once

#include <cstddef>

#include "kernels/cpu/cpu.h"
#include "kernels/kv_page.h"

namespace kvfold::cuda {

inline constexpr int kMostVecRows = 16;    // of activations, for mat_vec
inline constexpr int kMostLikeliest = 64;  // tokens of a row that likeliest() finds

// Partial results of attention over blocks of 256 rows, [tokens][kv_heads][blocks][group].
inline size_t attention_scratch_floats(int tokens, int blocks, int heads, int head_dim) {
  return static_cast<size_t>(tokens) * blocks * heads * (head_dim + 2);
}

// What a launch adds to a kernel's own shared memory. Attention, with blocks of kAttentionBlock threads: the
// queries of that many heads as each warp turns them, then, in the same place, value rows and their scales.
inline constexpr int kValueStage = 32;  // value rows in shared memory together
constexpr int element_bytes(CacheType type) {
  return type == CacheType::kF16 ? 2 : type == CacheType::kF32 ? 4 : 1;
}
inline size_t attention_shared(CacheType type, int heads, int head_dim) {
  const size_t turned = static_cast<size_t>(kAttentionBlock / 32) * heads * head_dim * sizeof(float);
  const size_t scales = (head_dim + 31) / 32 * sizeof(float);
  const size_t stage = kValueStage * (static_cast<size_t>(head_dim) * element_bytes(type) + scales);
  return turned > stage ? turned : stage;
}
inline size_t norm_shared(int columns) { return columns * sizeof(float); }

// likeliest() brings k keys of each chunk of a row to the next round, until one chunk is left.
inline constexpr int kLikeliestChunk = 4096;
inline int likeliest_chunks(int count) { return (count + kLikeliestChunk - 1) / kLikeliestChunk; }
inline size_t likeliest_scratch_keys(int rows, int columns, int k) {
  size_t keys = 0;
  for (int count = columns;;) {
    const int chunks = likeliest_chunks(count);
    keys += static_cast<size_t>(rows) * chunks * k;
    if (chunks == 1) return keys;
    count = chunks * k;
  }
}

}  // namespace kvfold::cuda
