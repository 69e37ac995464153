#include "loaders/architectures.h"

#include <array>

namespace kvfold {
namespace {

constexpr std::array kArchitectures = {
    // Llama 1 to 3, TinyLlama, SmolLM and SmolLM2, Mistral. GGUF converters permute q and k rows for
    // interleaved pairs.
    Architecture{"llama", false, false, RopePairing::kInterleaved},
    // Qwen 1.5, 2 and 2.5.
    Architecture{"qwen2", true, false, RopePairing::kHalfSplit},
    Architecture{"qwen3", false, true, RopePairing::kHalfSplit},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& architecture : kArchitectures)
    if (architecture.name == name) return &architecture;
  return nullptr;
}

}  // namespace kvfold
