// How much memory the CUDA kernels work in beside their arguments, known on any machine.
#pragma once

#include <cstddef>

namespace kvfold::cuda {

inline constexpr int kMostVecRows = 16;    // of activations, for mat_vec
inline constexpr int kMostLikeliest = 64;  // tokens of a row that likeliest() finds

// Partial results of attention over blocks of 256 rows, [tokens][kv_heads][blocks][group].
inline size_t attention_scratch_floats(int tokens, int blocks, int heads, int head_dim) {
  return static_cast<size_t>(tokens) * blocks * heads * (head_dim + 2);
}

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
