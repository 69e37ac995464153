// Models of a known shape with random weights: what loading, memory, speed and the cache's shape are tried on
// where the real files cannot be had.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/status.h"

namespace kvfold {

enum class RandomTypes {
  kQ4_0,    // matrices Q4_0, the one that makes the logits Q6_K
  kQ4_K_M,  // Q4_K, with Q6_K for that one, and for v and down of half of the layers
};

// head_dim is 64 in all.
struct RandomModelShape {
  std::string_view name, architecture;
  int layers, model_dim, heads, kv_heads, ffn_dim, vocab_size, context_length;
  float rope_base, norm_epsilon;
  bool tied;
  std::string_view pre_tokenizer;  // "": SPM
  int unused;                      // tokens at the end of the vocabulary that are no text
};

// "tinyllama-1.1b", "smollm-360m", "qwen-0.5b", "smollm-135m".
std::vector<std::string_view> random_model_names();

// Writes a GGUF file of exactly that model's shape: tensor names, types as in the usual files (rows that 256
// does not divide take Q5_0 and Q8_0 in place of Q4_K and Q6_K), a vocabulary of the right kind and size made
// of small letters, and the model's chat template. The same seed gives the same bytes.
// Errors: an unknown name; the file cannot be written.
Status make_random_model(const std::string& like, RandomTypes types, uint64_t seed, const std::string& path);
// The same of any shape. REQUIRES: a known architecture, widths that are multiples of 32, 400 tokens or more
// besides the unused ones.
Status make_random_model(const RandomModelShape& shape, RandomTypes types, uint64_t seed,
                         const std::string& path);

}  // namespace kvfold
