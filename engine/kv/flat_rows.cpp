#include "engine/kv/flat_rows.h"

#include <algorithm>
#include <numeric>

#include "engine/kv/lane_matrix.h"

namespace kvfold {
namespace {

// What is done with one lane's K or V: where it lies within a flat row.
template <class Work>
void for_each_lane(const CacheShape& shape, const Work& work) {
  for (const Part part : {Part::kKey, Part::kValue})
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int head = 0; head < shape.kv_heads; ++head)
        work(part, shape.lane(layer, head), row_offset(shape, part, layer, head));
}

}  // namespace

void load_rows(const KvCache& cache, int begin, int count, float* out) {
  const auto width = static_cast<size_t>(row_width(cache.shape()));
  for_each_lane(cache.shape(), [&](Part part, int lane, int offset) {
    const PageTable& table = cache.lanes().table(part, lane);
    for (int r = 0; r < count; ++r) table.load(part, begin + r, out + r * width + offset);
  });
}

std::vector<float> all_rows(const KvCache& cache) {
  std::vector<float> out(static_cast<size_t>(cache.size()) * row_width(cache.shape()));
  load_rows(cache, 0, cache.size(), out.data());
  return out;
}

std::vector<float> gather_rows(const KvCache& cache, std::span<const int> which) {
  const auto width = static_cast<size_t>(row_width(cache.shape()));
  const std::vector<float> rows = all_rows(cache);
  std::vector<float> out(which.size() * width);
  for (size_t i = 0; i < which.size(); ++i)
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(which[i] * width), width,
                out.begin() + static_cast<std::ptrdiff_t>(i * width));
  return out;
}

Result<KvCache> cache_of_rows(const std::shared_ptr<PagePool>& pool, const CacheShape& shape,
                              std::span<const TokenId> tokens, const float* rows, const std::string& source) {
  const auto count = static_cast<int>(tokens.size());
  KVFOLD_RETURN_IF_ERROR(pool->require(size_t{2} * shape.lanes() * pages_of_rows(count)));
  const auto width = static_cast<size_t>(row_width(shape));
  KvLanes lanes(pool, shape);
  LaneMatrix m{count, shape.head_dim, std::vector<int>(tokens.size()), {}};
  std::iota(m.slots.begin(), m.slots.end(), 0);
  m.data.resize(static_cast<size_t>(count) * shape.head_dim);
  Status status;
  for_each_lane(shape, [&](Part part, int lane, int offset) {
    if (!status.ok()) return;
    for (int r = 0; r < count; ++r) std::copy_n(rows + r * width + offset, shape.head_dim, m.row(r));
    status = store_lane(lanes, part, lane, m);
  });
  KVFOLD_RETURN_IF_ERROR(status);
  auto info = std::make_shared<Rows>();
  const int32_t index = info->source_index(source);
  info->tokens.assign(tokens.begin(), tokens.end());
  info->positions = m.slots;
  for (int32_t r = 0; r < count; ++r)
    info->origins.push_back({index, r, static_cast<uint32_t>(Operation::kProject)});
  return KvCache(std::move(lanes), std::move(info), count);
}

}  // namespace kvfold
