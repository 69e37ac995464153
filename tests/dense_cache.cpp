#include "tests/dense_cache.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace kvfold::testing {
namespace {

bool contains(const std::vector<int>& sorted, int x) {
  return std::binary_search(sorted.begin(), sorted.end(), x);
}

bool selects_lane(const DenseCache& cache, const Selection& selection, int lane) {
  return contains(selection.layers, lane / cache.shape.kv_heads) &&
         contains(selection.heads, lane % cache.shape.kv_heads);
}

void mark(DenseRow& row, Operation operation) { row.operations |= static_cast<uint32_t>(operation); }

void move_row(DenseRow& row, int64_t to) {
  if (row.position == to) return;
  row.position = static_cast<int32_t>(to);
  mark(row, Operation::kShift);
}

int32_t behind_highest(const DenseCache& cache) {
  int32_t next = 0;
  for (const DenseRow& row : cache.rows) next = std::max(next, row.position + 1);
  return next;
}

// Visits every vector that the selection names and the cache has.
void for_selected(DenseCache& cache, const Selection& selection,
                  const std::function<void(int part, int lane, int slot, DenseVector&)>& visit) {
  for (int part = 0; part < 2; ++part) {
    if (part == 0 ? !selection.keys : !selection.values) continue;
    for (int lane = 0; lane < cache.shape.lanes(); ++lane) {
      if (!selects_lane(cache, selection, lane)) continue;
      for (const int slot : selection.rows)
        if (cache.at(part, lane, slot)) visit(part, lane, slot, *cache.at(part, lane, slot));
    }
  }
}

// Arithmetic marks the rows of which it changed a vector.
DenseCache change(const DenseCache& cache, const Selection& selection, Operation operation,
                  const std::function<void(int part, int lane, int slot, DenseVector&)>& visit) {
  DenseCache out = cache;
  for_selected(out, selection, [&](int part, int lane, int slot, DenseVector& v) {
    visit(part, lane, slot, v);
    mark(out.rows[slot], operation);
  });
  return out;
}

// Without what `drops` names; rows that are named and that no lane holds any more are gone.
DenseCache drop(const DenseCache& cache, const std::function<bool(int lane, int slot)>& drops) {
  DenseCache out = cache;
  std::vector<bool> gone(static_cast<size_t>(cache.size()));
  for (int slot = 0; slot < cache.size(); ++slot) {
    bool named = false;
    bool held = false;
    for (int lane = 0; lane < cache.shape.lanes(); ++lane) {
      const bool dropped = drops(lane, slot);
      named |= dropped;
      held |= !dropped && cache.at(0, lane, slot);
      if (!dropped) continue;
      if (cache.at(0, lane, slot)) mark(out.rows[slot], Operation::kErase);
      for (int part = 0; part < 2; ++part) out.at(part, lane, slot).reset();
    }
    gone[slot] = named && !held;
  }
  out.remove_rows(gone);
  return out;
}

double norm_of(const DenseVector& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace

void DenseCache::add_row(const DenseRow& row) {
  rows.push_back(row);
  for (auto& lane : vectors) lane.emplace_back();
}

void DenseCache::remove_rows(const std::vector<bool>& gone) {
  for (int slot = size() - 1; slot >= 0; --slot) {
    if (!gone[slot]) continue;
    rows.erase(rows.begin() + slot);
    for (auto& lane : vectors) lane.erase(lane.begin() + slot);
  }
}

DenseCache dense_extract(const DenseCache& cache, const Selection& selection) {
  DenseCache out(cache.shape);
  for (const int slot : selection.rows) {
    out.add_row(cache.rows[slot]);
    for (int part = 0; part < 2; ++part)
      for (int lane = 0; lane < cache.shape.lanes(); ++lane)
        if ((part == 0 ? selection.keys : selection.values) && selects_lane(cache, selection, lane))
          out.at(part, lane, out.size() - 1) = cache.at(part, lane, slot);
  }
  return out;
}

DenseCache dense_insert(const DenseCache& cache, const DenseCache& slice, int at,
                        const InsertPositions& positions) {
  bool any = false;
  for (const auto& lane : slice.vectors)
    for (const auto& v : lane) any |= v.has_value();
  if (!any) return cache;
  // Where the slice begins, and by how much the rows behind move.
  int32_t low = slice.rows[0].position;
  int32_t high = low;
  for (const DenseRow& row : slice.rows) {
    low = std::min(low, row.position);
    high = std::max(high, row.position);
  }
  const int64_t behind = at < cache.size() ? cache.rows[at].position : cache.next_position;
  const int64_t before = at > 0 ? cache.rows[at - 1].position + 1 : 0;
  const int64_t extent = high - low + 1;
  int64_t begin = low;
  int64_t move_behind = 0;
  using Kind = InsertPositions::Kind;
  if (positions.kind == Kind::kFollow) {
    begin = before;
    move_behind = before + extent - behind;
  } else if (positions.kind == Kind::kOverlap) {
    begin = behind;
  } else if (positions.kind == Kind::kGap) {
    begin = before + (at > 0 ? positions.value : 0);
    move_behind = begin + extent + positions.value - behind;
  } else if (positions.kind == Kind::kFrom) {
    begin = positions.value;
  }
  DenseCache out = cache;
  for (int slot = at; slot < out.size(); ++slot)
    move_row(out.rows[slot], out.rows[slot].position + move_behind);
  for (int i = 0; i < slice.size(); ++i) {
    out.rows.insert(out.rows.begin() + at + i, slice.rows[i]);
    move_row(out.rows[at + i], slice.rows[i].position - low + begin);
    for (size_t lane = 0; lane < out.vectors.size(); ++lane)
      out.vectors[lane].insert(out.vectors[lane].begin() + at + i, slice.vectors[lane][i]);
  }
  const bool highest = positions.kind == Kind::kKeep || positions.kind == Kind::kFrom;
  out.next_position = highest ? std::max(cache.next_position, behind_highest(out))
                              : static_cast<int32_t>(cache.next_position + move_behind);
  return out;
}

DenseCache dense_overwrite(const DenseCache& cache, const DenseCache& slice, const std::vector<int>& rows) {
  DenseCache out = cache;
  bool whole = true;
  for (const auto& lane : slice.vectors)
    for (const auto& v : lane) whole &= v.has_value();
  for (int i = 0; i < slice.size(); ++i) {
    if (whole) {
      const int32_t position = out.rows[rows[i]].position;
      out.rows[rows[i]] = slice.rows[i];
      out.rows[rows[i]].position = position;
    }
    for (size_t lane = 0; lane < out.vectors.size(); ++lane) {
      if (!slice.vectors[lane][i]) continue;
      out.vectors[lane][rows[i]] = slice.vectors[lane][i];
      mark(out.rows[rows[i]], Operation::kOverwrite);
    }
  }
  return out;
}

DenseCache dense_erase(const DenseCache& cache, const Selection& selection) {
  if (selection.empty()) return cache;
  return drop(cache, [&](int lane, int slot) {
    return selects_lane(cache, selection, lane) && contains(selection.rows, slot);
  });
}

DenseCache dense_keep(const DenseCache& cache, const Selection& selection) {
  return drop(cache, [&](int lane, int slot) {
    return !selects_lane(cache, selection, lane) || !contains(selection.rows, slot);
  });
}

DenseCache dense_truncate(const DenseCache& cache, int size) {
  DenseCache out = cache;
  std::vector<bool> gone(static_cast<size_t>(cache.size()));
  std::fill(gone.begin() + size, gone.end(), true);
  out.remove_rows(gone);
  if (size < cache.size()) out.next_position = size == 0 ? 0 : out.rows.back().position + 1;
  return out;
}

DenseCache dense_shift(const DenseCache& cache, const std::vector<int>& rows, int32_t delta) {
  DenseCache out = cache;
  for (const int row : rows) move_row(out.rows[row], out.rows[row].position + delta);
  if (static_cast<int>(rows.size()) == cache.size()) out.next_position += delta;
  return out;
}

DenseCache dense_set_positions(const DenseCache& cache, const std::vector<int32_t>& positions) {
  DenseCache out = cache;
  for (int i = 0; i < cache.size(); ++i) move_row(out.rows[i], positions[i]);
  out.next_position = behind_highest(out);
  return out;
}

DenseCache dense_concat(const std::vector<DenseCache>& slices) {
  DenseCache out(slices[0].shape);
  for (const DenseCache& slice : slices)
    for (int i = 0; i < slice.size(); ++i) {
      out.add_row(slice.rows[i]);
      for (size_t lane = 0; lane < out.vectors.size(); ++lane)
        out.vectors[lane].back() = slice.vectors[lane][i];
    }
  return out;
}

DenseCache dense_mix(const DenseCache& a, const DenseCache& b, double alpha, const Selection& selection) {
  if (alpha == 0) return a;
  return change(a, selection, Operation::kMix, [&](int part, int lane, int slot, DenseVector& v) {
    for (size_t i = 0; i < v.size(); ++i) v[i] = (1 - alpha) * v[i] + alpha * (*b.at(part, lane, slot))[i];
  });
}

DenseCache dense_add(const DenseCache& cache, const SteeringVectors& vectors, double coefficient,
                     const Selection& selection) {
  Selection wanted = selection;
  if (vectors.keys.empty()) wanted.keys = false;
  if (vectors.values.empty()) wanted.values = false;
  return change(cache, wanted, Operation::kAdd, [&](int part, int lane, int, DenseVector& v) {
    const std::vector<float>& from = part == 0 ? vectors.keys : vectors.values;
    const size_t first = from.size() == v.size() ? 0 : lane * v.size();
    for (size_t i = 0; i < v.size(); ++i) v[i] += coefficient * from[first + i];
  });
}

DenseCache dense_scale(const DenseCache& cache, double factor, const Selection& selection) {
  return change(cache, selection, Operation::kScale, [&](int, int, int, DenseVector& v) {
    for (double& x : v) x *= factor;
  });
}

DenseCache dense_match_norm(const DenseCache& cache, const DenseCache& to, NormTarget target,
                            const Selection& selection) {
  return change(cache, selection, Operation::kScale, [&](int part, int lane, int slot, DenseVector& v) {
    double wanted = 0;
    if (target == NormTarget::kRow) {
      wanted = norm_of(*to.at(part, lane, slot));
    } else {
      int count = 0;
      for (int s = 0; s < to.size(); ++s) {
        if (!to.at(part, lane, s)) continue;
        wanted += norm_of(*to.at(part, lane, s));
        ++count;
      }
      wanted /= count;
    }
    const double found = norm_of(v);
    if (found > 0)
      for (double& x : v) x *= wanted / found;
  });
}

}  // namespace kvfold::testing
