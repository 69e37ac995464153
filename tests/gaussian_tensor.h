// A projector's tensor of random numbers.
#pragma once

#include <utility>
#include <vector>

#include "engine/kv/projector.h"
#include "engine/random.h"

namespace kvfold::testing {

inline ProjectorTensor gaussian_tensor(std::vector<int64_t> shape, uint64_t seed) {
  ProjectorTensor t{std::move(shape), {}};
  size_t count = 1;
  for (const int64_t n : t.shape) count *= static_cast<size_t>(n);
  Random random(seed);
  for (size_t i = 0; i < count; ++i) t.data.push_back(static_cast<float>(random.gaussian()));
  return t;
}

}  // namespace kvfold::testing
