// Sessions on small models, on the tested device and on the CPU beside it.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "loaders/open.h"
#include "tests/cuda/tested_device.h"
#include "tests/must.h"
#include "tests/temporary.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {

inline OpenOptions on(const std::string& backend, CacheType type = CacheType::kF16, int chunk = 512) {
  OpenOptions options;
  options.backend = backend;
  options.cpu.threads = 1;
  options.session.cache_type = type;
  options.session.cache_bytes = size_t{4} << 20;
  options.session.chunk = chunk;
  return options;
}

inline std::vector<TokenId> tokens(int count, int seed = 3) {
  std::vector<TokenId> out;
  for (int i = 0; i < count; ++i) out.push_back((i * 37 + seed * 11 + i * i) % 256);
  return out;
}

}  // namespace kvfold::testing
