// The shape of a model: everything about it that is not a weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvfold {

// Which two elements of a head RoPE turns together. It is a property of how the q and k rows are stored, so
// of the file's format as much as of the architecture: llama GGUF files hold them permuted for interleaved
// pairs.
enum class RopePairing {
  kInterleaved,  // (2i, 2i + 1)
  kHalfSplit,    // (i, i + rotary_dim / 2)
};

struct ModelConfig {
  std::string architecture;  // "llama", "qwen2"
  std::string name;          // as the file gives it; may be empty
  int layers = 0;
  int model_dim = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int rotary_dim = 0;  // leading elements of a head that RoPE turns; head_dim for every model so far
  int ffn_dim = 0;
  int vocab_size = 0;
  int context_length = 0;  // longest context the model was trained for
  // Rows that a token attends to, itself among them; 0: all. A Session refuses more.
  int attention_window = 0;
  float norm_epsilon = 0;
  float rope_base = 0;
  RopePairing rope_pairing = RopePairing::kHalfSplit;
  std::vector<float> rope_factors;  // [rotary_dim / 2] divisors of the angle (Llama 3 scaling); empty: all 1
};

}  // namespace kvfold
