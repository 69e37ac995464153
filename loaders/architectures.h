// The architectures that can be loaded. A new one is a row here; a layer that differs from Llama's beyond
// what the row says also needs its step in engine/model.cpp.
#pragma once

#include <span>
#include <string_view>

#include "engine/config.h"

namespace kvfold {

struct Architecture {
  std::string_view name;     // general.architecture of GGUF, and the prefix of its metadata keys
  bool qkv_bias;             // q, k and v projections always have biases
  bool qk_norm;              // each head's q and k pass an RMS norm before RoPE
  RopePairing gguf_pairing;  // how GGUF files of this architecture store q and k rows
};

std::span<const Architecture> architectures();
// Null when unknown.
const Architecture* find_architecture(std::string_view name);

}  // namespace kvfold
