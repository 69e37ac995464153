// A row of all lanes as one vector: what projectors take in and give out.
#pragma once

#include <span>
#include <vector>

#include "engine/kv/cache.h"

namespace kvfold {

// Elements of a flat row. A layer's K lies before its V, and layers follow one another:
// index = ((layer * 2 + part) * kv_heads + head) * head_dim + d, with part 0 for K, before RoPE, and 1 for V.
inline int row_width(const CacheShape& shape) { return 2 * shape.lanes() * shape.head_dim; }
inline int row_offset(const CacheShape& shape, Part part, int layer, int head = 0) {
  return ((layer * 2 + (part == Part::kKey ? 0 : 1)) * shape.kv_heads + head) * shape.head_dim;
}

// Rows [begin, begin + count) of a cache, as f32 out [count][row_width]. REQUIRES: every lane holds them.
void load_rows(const KvCache& cache, int begin, int count, float* out);
// All rows, [cache.size()][row_width], and rows `which`, [which.size()][row_width]. REQUIRES: as load_rows().
std::vector<float> all_rows(const KvCache& cache);
std::vector<float> gather_rows(const KvCache& cache, std::span<const int> which);

// A cache of these rows [tokens.size()][row_width], at positions from 0 on, rounded to the pool's type. Their
// origins name `source`. Errors: the pool is exhausted; a value that its pages cannot hold.
Result<KvCache> cache_of_rows(const std::shared_ptr<PagePool>& pool, const CacheShape& shape,
                              std::span<const TokenId> tokens, const float* rows, const std::string& source);

}  // namespace kvfold
