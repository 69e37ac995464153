#include "engine/text_hash.h"

#include <xxhash.h>

#include <random>

namespace kvfold {

uint64_t hash_seed() {
  static const uint64_t kSeed = [] {
    std::random_device device;
    return static_cast<uint64_t>(device()) << 32 | device();
  }();
  return kSeed;
}

size_t TextHash::operator()(std::string_view text) const {
  return XXH3_64bits_withSeed(text.data(), text.size(), hash_seed());
}

}  // namespace kvfold
