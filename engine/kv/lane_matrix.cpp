#include "engine/kv/lane_matrix.h"

#include <cmath>

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

std::shared_ptr<PageTable> store_lane(const std::shared_ptr<PagePool>& pool, Part part, const LaneMatrix& m) {
  auto table = std::make_shared<PageTable>(pool);
  for (int r = 0; r < m.rows; ++r) {
    const PageTable::RowPlace place = table->extend(m.slots[r]);
    kv_store_row(pool->type(), part, pool->head_dim(), pool->write(place.page), place.row, m.row(r));
  }
  return table;
}

double norm(const float* x, int n) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  return std::sqrt(squares);
}

}  // namespace kvfold
