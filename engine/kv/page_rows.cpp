// What a pool does with the rows of its pages: by the device that they lie on, where that computes, or here.
#include "engine/kv/lane_matrix.h"
#include "engine/kv/page_pool.h"

namespace kvfold {
namespace {

void scale_row(std::span<float> x, double factor) {
  for (float& v : x) v = static_cast<float>(factor * v);
}

// What becomes of row x of a table; `other` is the row of the second cache, where the formula has one.
void change_row(const RowChange& change, int table, std::span<float> x, std::span<const float> other) {
  const int n = static_cast<int>(x.size());
  switch (change.formula) {
    case RowFormula::kMix:
      for (int d = 0; d < n; ++d)
        x[d] = static_cast<float>((1 - change.factor) * x[d] + change.factor * other[d]);
      return;
    case RowFormula::kAdd: {
      const auto vector = change.vectors.subspan(static_cast<size_t>(table) * n, static_cast<size_t>(n));
      for (int d = 0; d < n; ++d) x[d] = static_cast<float>(x[d] + change.factor * vector[d]);
      return;
    }
    case RowFormula::kScale:
      return scale_row(x, change.factor);
    case RowFormula::kMatchRow:
    case RowFormula::kMatchMean: {
      const double found = norm(x.data(), n);
      const double wanted =
          change.formula == RowFormula::kMatchRow ? norm(other.data(), n) : change.wanted[table];
      if (found > 0) scale_row(x, wanted / found);
    }
  }
}

}  // namespace

Result<std::optional<PagePool::Unheld>> PagePool::change_rows(const RowChange& change,
                                                              std::span<const RowRun> runs) {
  RowComputer* computer = memory_->computer();
  if (computer == nullptr) return change_here(change, runs, true);
  flush();
  KVFOLD_ASSIGN_OR_RETURN(const bool held, computer->change_rows(view(), change, runs));
  if (held) return std::optional<Unheld>();
  const std::optional<Unheld> unheld = change_here(change, runs, false);
  KVFOLD_RETURN_IF_ERROR(status());  // or the rows that were read are none
  KVFOLD_CHECK(unheld.has_value());
  return unheld;
}

// Up to what pages cannot hold; with `store` the rows are written.
std::optional<PagePool::Unheld> PagePool::change_here(const RowChange& change, std::span<const RowRun> runs,
                                                      bool store) {
  const bool of_two = change.formula == RowFormula::kMix || change.formula == RowFormula::kMatchRow;
  std::vector<float> x(static_cast<size_t>(head_dim_));
  std::vector<float> other(x.size());
  for (const RowRun& run : runs) {
    const Part part = part_of(run.table);
    for (int i = 0; i < run.count; ++i) {
      kv_load_row(type_, part, head_dim_, read(run.from), run.from_row + i, x.data());
      if (of_two) kv_load_row(type_, part, head_dim_, read(run.other), run.other_row + i, other.data());
      change_row(change, run.table, x, other);
      for (const float value : x)
        if (!kv_holds(type_, value)) return Unheld{run.table, value};
      if (store) kv_store_row(type_, part, head_dim_, write(run.to), run.to_row + i, x.data());
    }
  }
  return std::nullopt;
}

Status PagePool::row_norms(std::span<const RowRun> runs, std::span<double> norms) {
  if (RowComputer* computer = memory_->computer()) {
    flush();
    return computer->row_norms(view(), runs, norms);
  }
  std::vector<float> x(static_cast<size_t>(head_dim_));
  for (size_t i = 0; i < runs.size(); ++i)
    for (int row = 0; row < runs[i].count; ++row) {
      kv_load_row(type_, part_of(runs[i].table), head_dim_, read(runs[i].from), runs[i].from_row + row,
                  x.data());
      norms[i * kPageRows + row] = norm(x.data(), head_dim_);
    }
  return {};
}

void PagePool::copy_rows(std::span<const RowCopy> copies) {
  if (copies.empty()) return;
  for (const RowCopy& copy : copies) rows_copied_ += copy.count;
  if (RowComputer* computer = memory_->computer()) {
    flush();
    return computer->copy_rows(view(), copies);
  }
  for (const RowCopy& copy : copies)
    for (int i = 0; i < copy.count; ++i)
      kv_copy_row(type_, copy.part, head_dim_, read(copy.from), copy.from_row + i, write(copy.to),
                  copy.to_row + i);
}

}  // namespace kvfold
