// Operations that compute new vectors from those that are there.
#include <fmt/core.h>

#include <array>
#include <functional>

#include "engine/kv/lane_matrix.h"
#include "engine/kv/ops.h"

namespace kvfold {
namespace {

constexpr std::array kParts = {Part::kKey, Part::kValue};

// Changes the rows of one lane's K or V; their slots are counted in the selection.
using Change = std::function<void(Part part, int lane, LaneMatrix& rows)>;

// The cache with the selected rows changed. Lanes that hold none of them, and all other rows, stay shared.
Result<KvCache> change_rows(const KvCache& cache, const Selection& selection, Operation operation,
                            const Change& change) {
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(cache, selection));
  const std::shared_ptr<PagePool>& pool = cache.pool();
  size_t pages = 0;
  for (const Part part : kParts)
    for (int lane = 0; lane < cache.shape().lanes(); ++lane)
      pages += pages_of_rows(slice.lanes.table(part, lane).rows());
  if (pages == 0) return cache.fork();
  KVFOLD_RETURN_IF_ERROR(pool->require(pages));

  KvLanes lanes = cache.lanes();
  for (const Part part : kParts)
    for (int lane = 0; lane < cache.shape().lanes(); ++lane) {
      if (slice.lanes.table(part, lane).rows() == 0) continue;
      LaneMatrix rows = load_lane(slice.lanes, part, lane);
      change(part, lane, rows);
      const std::shared_ptr<PageTable> changed = store_lane(pool, part, rows);
      lanes.replace(part, lane, splice(cache.lanes().table(part, lane), *changed, selection.rows));
    }
  auto rows = std::make_shared<Rows>(cache.rows());
  for (const int row : selection.rows) rows->origins[row].operations |= static_cast<uint32_t>(operation);
  return KvCache(std::move(lanes), std::move(rows), cache.next_position());
}

std::string lane_text(const CacheShape& shape, int lane) {
  return fmt::format("layer {} head {}", lane / shape.kv_heads, lane % shape.kv_heads);
}

Status check_same_kind(const KvCache& a, const KvCache& b) {
  if (a.shape() != b.shape())
    return Status::error(fmt::format("cache shapes differ: {} layers x {} KV heads x {} and {} x {} x {}",
                                     a.shape().layers, a.shape().kv_heads, a.shape().head_dim,
                                     b.shape().layers, b.shape().kv_heads, b.shape().head_dim));
  if (a.pool() != b.pool()) return Status::error("the caches are of different page pools");
  return {};
}

Status check_same_rows(const KvCache& a, const KvCache& b, const Selection& selection, bool both_ways) {
  if (a.size() != b.size())
    return Status::error(fmt::format("the caches have {} and {} rows; expected as many", a.size(), b.size()));
  for (const int layer : selection.layers)
    for (const int head : selection.heads) {
      const int lane = a.shape().lane(layer, head);
      for (const int row : selection.rows) {
        const bool in_a = a.lanes().table(Part::kKey, lane).holds(row);
        const bool in_b = b.lanes().table(Part::kKey, lane).holds(row);
        if (both_ways ? in_a != in_b : in_a && !in_b)
          return Status::error(
              fmt::format("row {} of {} is in one of the caches alone", row, lane_text(a.shape(), lane)));
      }
    }
  return {};
}

void scale_row(float* row, int n, double factor) {
  for (int i = 0; i < n; ++i) row[i] = static_cast<float>(factor * row[i]);
}

// The vector that goes to a lane, or null.
const float* vector_of(const std::vector<float>& vectors, const CacheShape& shape, int lane) {
  if (vectors.empty()) return nullptr;
  const bool one = vectors.size() == static_cast<size_t>(shape.head_dim);
  return vectors.data() + (one ? 0 : static_cast<size_t>(lane) * shape.head_dim);
}

double mean_norm(const KvCache& cache, Part part, int lane) {
  const LaneMatrix m = load_lane(cache.lanes(), part, lane);
  double sum = 0;
  for (int r = 0; r < m.rows; ++r) sum += norm(m.row(r), m.columns);
  return sum / m.rows;
}

}  // namespace

Result<KvCache> mix(const KvCache& a, const KvCache& b, double alpha, const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(a.shape(), a.size()));
  KVFOLD_RETURN_IF_ERROR(check_same_kind(a, b));
  KVFOLD_RETURN_IF_ERROR(check_same_rows(a, b, selection, true));
  if (!std::isfinite(alpha)) return Status::error(fmt::format("mix: alpha {}: expected a number", alpha));
  if (alpha == 0) return a.fork();
  std::vector<float> other(static_cast<size_t>(a.shape().head_dim));
  return change_rows(a, selection, Operation::kMix, [&](Part part, int lane, LaneMatrix& m) {
    const PageTable& table = b.lanes().table(part, lane);
    for (int r = 0; r < m.rows; ++r) {
      table.load(part, selection.rows[m.slots[r]], other.data());
      for (int c = 0; c < m.columns; ++c)
        m.row(r)[c] = static_cast<float>((1 - alpha) * m.row(r)[c] + alpha * other[c]);
    }
  });
}

Result<KvCache> add(const KvCache& cache, const SteeringVectors& vectors, double coefficient,
                    const Selection& selection) {
  const CacheShape& shape = cache.shape();
  const auto head_dim = static_cast<size_t>(shape.head_dim);
  for (const std::vector<float>* v : {&vectors.keys, &vectors.values}) {
    if (!v->empty() && v->size() != head_dim && v->size() != head_dim * shape.lanes())
      return Status::error(fmt::format("add: a vector of {} values: expected [{}] or [{}, {}, {}]", v->size(),
                                       head_dim, shape.layers, shape.kv_heads, head_dim));
  }
  Selection wanted = selection;
  wanted.keys &= !vectors.keys.empty();
  wanted.values &= !vectors.values.empty();
  return change_rows(cache, wanted, Operation::kAdd, [&](Part part, int lane, LaneMatrix& m) {
    const float* vector = vector_of(part == Part::kKey ? vectors.keys : vectors.values, shape, lane);
    for (int r = 0; r < m.rows; ++r)
      for (int c = 0; c < m.columns; ++c)
        m.row(r)[c] = static_cast<float>(m.row(r)[c] + coefficient * vector[c]);
  });
}

Result<KvCache> scale(const KvCache& cache, double factor, const Selection& selection) {
  return change_rows(cache, selection, Operation::kScale, [&](Part, int, LaneMatrix& m) {
    for (int r = 0; r < m.rows; ++r) scale_row(m.row(r), m.columns, factor);
  });
}

Result<KvCache> match_norm(const KvCache& cache, const KvCache& to, NormTarget target,
                           const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  KVFOLD_RETURN_IF_ERROR(check_same_kind(cache, to));
  const bool by_row = target == NormTarget::kRow;
  if (by_row) {
    KVFOLD_RETURN_IF_ERROR(check_same_rows(cache, to, selection, false));
  } else {
    for (const int layer : selection.layers)
      for (const int head : selection.heads)
        if (to.lanes().table(Part::kKey, to.shape().lane(layer, head)).rows() == 0)
          return Status::error(
              fmt::format("match_norm: layer {} head {} has no rows to take a norm from", layer, head));
  }
  std::vector<float> other(static_cast<size_t>(cache.shape().head_dim));
  return change_rows(cache, selection, Operation::kScale, [&](Part part, int lane, LaneMatrix& m) {
    const double mean = by_row ? 0 : mean_norm(to, part, lane);
    for (int r = 0; r < m.rows; ++r) {
      if (by_row) to.lanes().table(part, lane).load(part, selection.rows[m.slots[r]], other.data());
      const double wanted = by_row ? norm(other.data(), m.columns) : mean;
      const double found = norm(m.row(r), m.columns);
      if (found > 0) scale_row(m.row(r), m.columns, wanted / found);
    }
  });
}

}  // namespace kvfold
