#include "engine/kv/lane_matrix.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/kv/cache_file.h"

namespace kvfold {

LaneMatrix load_lane(const KvLanes& lanes, Part part, int lane) {
  const PageTable& table = lanes.table(part, lane);
  LaneMatrix m{table.rows(), lanes.shape().head_dim, {}, {}};
  m.data.resize(static_cast<size_t>(m.rows) * m.columns);
  for (const KvSpan& span : table.spans())
    for (int i = 0; i < span.count; ++i) {
      table.load(part, span.slot + i, m.row(static_cast<int>(m.slots.size())));
      m.slots.push_back(span.slot + i);
    }
  return m;
}

Status store_lane(KvLanes& lanes, Part part, int lane, const LaneMatrix& m) {
  const std::shared_ptr<PagePool>& pool = lanes.pool();
  auto table = std::make_shared<PageTable>(pool);
  for (int r = 0; r < m.rows; ++r) {
    const std::span<const float> row(m.row(r), static_cast<size_t>(m.columns));
    const auto bad =
        std::find_if_not(row.begin(), row.end(), [&](float x) { return kv_holds(pool->type(), x); });
    if (bad != row.end())
      return beyond_pages(lanes, part, lane, *bad).with_prefix(fmt::format("row {}: ", m.slots[r]));
    const PageTable::RowPlace place = table->extend(m.slots[r]);
    kv_store_row(pool->type(), part, pool->head_dim(), pool->write(place.page), place.row, row.data());
  }
  lanes.replace(part, lane, std::move(table));
  return {};
}

std::string lane_text(const CacheShape& shape, int lane) {
  return fmt::format("layer {} head {}", lane / shape.kv_heads, lane % shape.kv_heads);
}

Status beyond_pages(const KvLanes& lanes, Part part, int lane, float value) {
  return Status::error(fmt::format("{}: {} becomes {}, beyond what pages of type {} can hold",
                                   lane_text(lanes.shape(), lane), part == Part::kKey ? "K" : "V", value,
                                   cache_type_name(lanes.pool()->type())));
}

double norm(const float* x, int n) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  return std::sqrt(squares);
}

}  // namespace kvfold
