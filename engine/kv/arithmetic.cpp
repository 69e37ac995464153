// Operations that compute new vectors from those that are there.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/kv/lane_matrix.h"
#include "engine/kv/ops.h"

namespace kvfold {
namespace {

constexpr std::array kParts = {Part::kKey, Part::kValue};

// As part_of() takes it apart.
int table_number(Part part, int lane) { return 2 * lane + static_cast<int>(part); }

// Consecutive rows on one page, on all sides, go together. Fresh rows, `to`, come one after another.
void add_row(std::vector<RowRun>& runs, int table, PageTable::RowPlace from, PageTable::RowPlace to,
             PageTable::RowPlace other) {
  if (!runs.empty()) {
    RowRun& last = runs.back();
    if (last.table == table && last.from == from.page && last.to == to.page && last.other == other.page &&
        last.from_row + last.count == from.row && last.other_row + last.count == other.row) {
      ++last.count;
      return;
    }
  }
  runs.push_back({from.page, to.page, other.page, table, static_cast<uint8_t>(from.row),
                  static_cast<uint8_t>(to.row), static_cast<uint8_t>(other.row), 1});
}

// Fresh rows at the slots of `rows`, not yet written: what is to become of which is added to `runs`. Slots
// are counted in the selection.
std::shared_ptr<PageTable> plan_lane(const PageTable& rows, Part part, int lane, const Selection& selection,
                                     const KvCache* other, std::vector<RowRun>& runs) {
  auto table = std::make_shared<PageTable>(rows.pool());
  for (const KvSpan& span : rows.spans())
    for (int i = 0; i < span.count; ++i) {
      const int slot = span.slot + i;
      const PageTable::RowPlace from{span.page, span.first + i};
      const PageTable::RowPlace beside =
          other != nullptr ? other->lanes().table(part, lane).place(selection.rows[slot]) : from;
      add_row(runs, table_number(part, lane), from, table->extend(slot), beside);
    }
  return table;
}

// The cache with the selected rows changed; `other` is the second cache, where the formula has one. Lanes
// that hold none of them, and all other rows, stay shared.
Result<KvCache> change_rows(const KvCache& cache, const Selection& selection, Operation operation,
                            const RowChange& change, const KvCache* other = nullptr) {
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(cache, selection));
  const std::shared_ptr<PagePool>& pool = cache.pool();
  size_t pages = 0;
  for (const Part part : kParts)
    for (int lane = 0; lane < cache.shape().lanes(); ++lane)
      pages += pages_of_rows(slice.lanes.table(part, lane).rows());
  if (pages == 0) return cache.fork();
  KVFOLD_RETURN_IF_ERROR(pool->require(pages));

  std::vector<RowRun> runs;
  KvLanes lanes = cache.lanes();
  for (const Part part : kParts)
    for (int lane = 0; lane < cache.shape().lanes(); ++lane) {
      const PageTable& old = slice.lanes.table(part, lane);
      if (old.rows() == 0) continue;
      const std::shared_ptr<PageTable> changed = plan_lane(old, part, lane, selection, other, runs);
      lanes.replace(part, lane, splice(cache.lanes().table(part, lane), *changed, selection.rows));
    }
  KVFOLD_ASSIGN_OR_RETURN(const std::optional<PagePool::Unheld> unheld, pool->change_rows(change, runs));
  if (unheld) return beyond_pages(lanes, part_of(unheld->table), unheld->table / 2, unheld->value);
  auto rows = std::make_shared<Rows>(cache.rows());
  mark_held(*rows, selection.rows, slice.lanes, operation);
  return KvCache(std::move(lanes), std::move(rows), cache.next_position());
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

// [2 * lanes][head_dim], zeros where there is none: the vectors as RowChange has them.
std::vector<float> by_table(const SteeringVectors& vectors, const CacheShape& shape) {
  const auto head_dim = static_cast<size_t>(shape.head_dim);
  std::vector<float> out(2 * head_dim * shape.lanes());
  for (const Part part : kParts) {
    const std::vector<float>& from = part == Part::kKey ? vectors.keys : vectors.values;
    if (from.empty()) continue;
    const size_t step = from.size() == head_dim ? 0 : head_dim;  // one vector for all lanes, or one each
    for (int lane = 0; lane < shape.lanes(); ++lane)
      std::copy_n(&from[lane * step], head_dim, &out[table_number(part, lane) * head_dim]);
  }
  return out;
}

// [2 * lanes]: the mean norm of the rows of each selected lane.
Result<std::vector<double>> mean_norms(const KvCache& cache, const Selection& selection) {
  std::vector<RowRun> runs;
  for (const int layer : selection.layers)
    for (const int head : selection.heads)
      for (const Part part : kParts) {
        const int lane = cache.shape().lane(layer, head);
        for (const KvSpan& span : cache.lanes().table(part, lane).spans())
          runs.push_back({span.page, 0, 0, table_number(part, lane), static_cast<uint8_t>(span.first), 0, 0,
                          static_cast<uint8_t>(span.count)});
      }
  std::vector<double> norms(runs.size() * kPageRows);
  KVFOLD_RETURN_IF_ERROR(cache.pool()->row_norms(runs, norms));
  std::vector<double> means(static_cast<size_t>(2) * cache.shape().lanes());
  for (size_t i = 0; i < runs.size(); ++i)
    for (int row = 0; row < runs[i].count; ++row) means[runs[i].table] += norms[i * kPageRows + row];
  for (size_t table = 0; table < means.size(); ++table) {
    const int rows =
        cache.lanes().table(part_of(static_cast<int>(table)), static_cast<int>(table / 2)).rows();
    if (rows > 0) means[table] /= rows;
  }
  return means;
}

}  // namespace

Result<KvCache> mix(const KvCache& a, const KvCache& b, double alpha, const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(a.shape(), a.size()));
  KVFOLD_RETURN_IF_ERROR(check_same_kind(a, b));
  KVFOLD_RETURN_IF_ERROR(check_same_rows(a, b, selection, true));
  if (!std::isfinite(alpha)) return Status::error(fmt::format("mix: alpha {}: expected a number", alpha));
  if (alpha == 0) return a.fork();
  return change_rows(a, selection, Operation::kMix, {RowFormula::kMix, alpha}, &b);
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
  const std::vector<float> tables = by_table(vectors, shape);
  return change_rows(cache, wanted, Operation::kAdd, {RowFormula::kAdd, coefficient, tables});
}

Result<KvCache> scale(const KvCache& cache, double factor, const Selection& selection) {
  return change_rows(cache, selection, Operation::kScale, {RowFormula::kScale, factor});
}

Result<KvCache> match_norm(const KvCache& cache, const KvCache& to, NormTarget target,
                           const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  KVFOLD_RETURN_IF_ERROR(check_same_kind(cache, to));
  if (target == NormTarget::kRow) {
    KVFOLD_RETURN_IF_ERROR(check_same_rows(cache, to, selection, false));
    return change_rows(cache, selection, Operation::kScale, {RowFormula::kMatchRow}, &to);
  }
  for (const int layer : selection.layers)
    for (const int head : selection.heads)
      if (to.lanes().table(Part::kKey, to.shape().lane(layer, head)).rows() == 0)
        return Status::error(
            fmt::format("match_norm: layer {} head {} has no rows to take a norm from", layer, head));
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<double> means, mean_norms(to, selection));
  return change_rows(cache, selection, Operation::kScale, {RowFormula::kMatchMean, 0, {}, means});
}

}  // namespace kvfold
