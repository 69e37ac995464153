// Caches of made-up rows, for tests of operations on them.
#pragma once

#include <memory>
#include <numeric>
#include <string_view>
#include <vector>

#include "engine/kv/ops.h"
#include "engine/random.h"
#include "tests/must.h"

namespace kvfold::testing {

inline constexpr CacheShape kShape{3, 2, 64};

inline std::shared_ptr<PagePool> make_pool(CacheType type = CacheType::kF32,
                                           size_t bytes = size_t{64} << 20) {
  return must(PagePool::create(type, kShape.head_dim, bytes));
}

// Gaussian vectors whose mean and norm differ from lane to lane.
inline KvCache random_cache(const std::shared_ptr<PagePool>& pool, int rows, uint64_t seed) {
  KvCache cache(pool, kShape);
  std::vector<TokenId> tokens(static_cast<size_t>(rows));
  std::iota(tokens.begin(), tokens.end(), 100);
  EXPECT_TRUE(cache.grow(tokens).ok());
  Random random(seed);
  std::vector<float> row(kShape.head_dim);
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < kShape.lanes(); ++lane)
      for (int slot = 0; slot < rows; ++slot) {
        for (float& x : row) x = static_cast<float>(0.3 * lane + (1 + 0.1 * slot) * random.gaussian());
        const auto place = cache.row_place(part, lane, slot);
        kv_store_row(pool->type(), part, kShape.head_dim, pool->write(place.page), place.row, row.data());
      }
  return cache;
}

inline Selection select(const KvCache& cache, std::string_view text) {
  return must(Selection::parse(text, cache.shape(), cache.size()));
}
inline KvSlice slice_of(const KvCache& cache, std::string_view text = "") {
  return must(extract(cache, select(cache, text)));
}

}  // namespace kvfold::testing
