#include "engine/kv/ops.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "engine/printable.h"

namespace kvfold {
namespace {

constexpr std::array kParts = {Part::kKey, Part::kValue};

struct Run {
  int begin, end;
};

// Sorted slots as runs of consecutive ones.
std::vector<Run> runs_of(std::span<const int> slots) {
  std::vector<Run> runs;
  for (const int slot : slots) {
    if (!runs.empty() && runs.back().end == slot) {
      ++runs.back().end;
    } else {
      runs.push_back({slot, slot + 1});
    }
  }
  return runs;
}

// The runs of `from`, one after another from slot 0.
void gather(const PageTable& from, std::span<const Run> runs, PageTable& to) {
  int slot = 0;
  for (const Run& run : runs) {
    to.append(from, run.begin, run.end, slot - run.begin);
    slot += run.end - run.begin;
  }
}

Rows gather_rows(const Rows& from, std::span<const Run> runs) {
  Rows rows;
  for (const Run& run : runs) rows.append(from, run.begin, run.end);
  return rows;
}

std::vector<bool> lane_mask(const CacheShape& shape, const Selection& selection) {
  std::vector<bool> mask(static_cast<size_t>(shape.lanes()));
  for (const int layer : selection.layers)
    for (const int head : selection.heads) mask[shape.lane(layer, head)] = true;
  return mask;
}

Status check_compatible(const KvLanes& lanes, const KvSlice& slice) {
  const CacheShape& a = lanes.shape();
  const CacheShape& b = slice.shape();
  if (a != b) {
    return Status::error(
        fmt::format("cache shapes differ: the slice has {} layers x {} KV heads x {}, the cache {} x {} x {}",
                    b.layers, b.kv_heads, b.head_dim, a.layers, a.kv_heads, a.head_dim));
  }
  if (lanes.pool() != slice.lanes.pool()) return Status::error("cache and slice are of different page pools");
  return {};
}

Status check_halves(const KvSlice& slice) {
  for (int lane = 0; lane < slice.shape().lanes(); ++lane) {
    const PageTable& keys = slice.lanes.table(Part::kKey, lane);
    const PageTable& values = slice.lanes.table(Part::kValue, lane);
    if (keys.holds_same_slots(values)) continue;
    return Status::error(fmt::format(
        "layer {} head {} has {} rows of K and {} of V{}; a row needs both: fill the other half with zero, "
        "noise, mean or a slice",
        lane / slice.shape().kv_heads, lane % slice.shape().kv_heads, keys.rows(), values.rows(),
        keys.rows() == values.rows() ? " that are not the same" : ""));
  }
  return {};
}

int32_t highest_follow(const Rows& rows) {
  int32_t next = 0;
  for (const int32_t position : rows.positions) next = std::max(next, position + 1);
  return next;
}

void mark(Rows& rows, int row, Operation operation) {
  rows.origins[row].operations |= static_cast<uint32_t>(operation);
}

// How insert() moves positions: the slice's by `slice_delta`, those behind by `behind_delta`.
struct Moves {
  int64_t slice_delta = 0;
  int64_t behind_delta = 0;
};

Moves insert_moves(const KvCache& cache, const Rows& inserted, int at, const InsertPositions& positions) {
  const auto [low, high] = std::minmax_element(inserted.positions.begin(), inserted.positions.end());
  const int64_t extent = static_cast<int64_t>(*high) - *low + 1;
  const std::vector<int32_t>& held = cache.rows().positions;
  // The positions that come next before the slice, and at the first row behind it.
  const int64_t before = at > 0 ? static_cast<int64_t>(held[at - 1]) + 1 : 0;
  const int64_t behind = at < cache.size() ? held[at] : cache.next_position();
  using Kind = InsertPositions::Kind;
  switch (positions.kind) {
    case Kind::kFollow:
      return {before - *low, before + extent - behind};
    case Kind::kKeep:
      return {0, 0};
    case Kind::kOverlap:
      return {behind - *low, 0};
    case Kind::kGap: {
      const int64_t from = before + (at > 0 ? positions.value : 0);
      return {from - *low, from + extent + positions.value - behind};
    }
    case Kind::kFrom:
      break;
  }
  return {static_cast<int64_t>(positions.value) - *low, 0};
}

// Positions stay far enough from overflow that any two can be added or subtracted.
Status check_position(int64_t position) {
  if (std::abs(position) <= kMostPosition) return {};
  return Status::error(
      fmt::format("position {} is out of range: positions go to +-{}", position, kMostPosition));
}

Status move_positions(Rows& rows, int begin, int end, int64_t delta) {
  if (delta == 0) return {};
  for (int i = begin; i < end; ++i) {
    const int64_t position = rows.positions[i] + delta;
    if (Status status = check_position(position); !status.ok())
      return status.with_prefix(fmt::format("row {}: ", i));
    rows.positions[i] = static_cast<int32_t>(position);
    mark(rows, i, Operation::kShift);
  }
  return {};
}

}  // namespace

Result<InsertPositions> InsertPositions::parse(std::string_view text) {
  using Kind = InsertPositions::Kind;
  if (text == "follow") return InsertPositions{Kind::kFollow, 0};
  if (text == "keep") return InsertPositions{Kind::kKeep, 0};
  if (text == "overlap") return InsertPositions{Kind::kOverlap, 0};
  const size_t colon = text.find(':');
  const std::string_view word = text.substr(0, colon);
  if (colon != std::string_view::npos && (word == "gap" || word == "from")) {
    const std::string_view number = text.substr(colon + 1);
    int32_t value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    const bool whole = error == std::errc() && end == number.data() + number.size();
    if (whole && (word == "from" || value >= 0) && std::abs(static_cast<int64_t>(value)) <= kMostPosition)
      return InsertPositions{word == "gap" ? Kind::kGap : Kind::kFrom, value};
  }
  return Status::error(
      fmt::format("positions '{}': expected follow, keep, overlap, gap:N or from:N", printable(text)));
}

Result<KvSlice> extract(const KvCache& cache, const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  const std::vector<Run> runs = runs_of(selection.rows);
  const std::vector<bool> lanes = lane_mask(cache.shape(), selection);
  const bool every_row = static_cast<int>(selection.rows.size()) == cache.size();
  KvLanes out(cache.pool(), cache.shape());
  for (const Part part : kParts) {
    if (part == Part::kKey ? !selection.keys : !selection.values) continue;
    for (int lane = 0; lane < cache.shape().lanes(); ++lane) {
      if (!lanes[lane]) continue;
      if (every_row) {
        out.share(part, lane, cache.lanes(), lane);
      } else {
        gather(cache.lanes().table(part, lane), runs, out.mutable_table(part, lane));
      }
    }
  }
  return KvSlice{std::move(out), std::make_shared<Rows>(gather_rows(cache.rows(), runs))};
}

Result<KvCache> insert(const KvCache& cache, const KvSlice& slice, int at, const InsertPositions& positions) {
  KVFOLD_RETURN_IF_ERROR(check_compatible(cache.lanes(), slice));
  if (at < 0 || at > cache.size())
    return Status::error(fmt::format("insert at slot {}: slots 0-{} exist", at, cache.size()));
  KVFOLD_RETURN_IF_ERROR(check_halves(slice));
  const int count = slice.size();
  bool any = false;
  for (int lane = 0; lane < cache.shape().lanes(); ++lane)
    any |= slice.lanes.table(Part::kKey, lane).rows() > 0;
  if (!any) return cache.fork();

  auto rows = std::make_shared<Rows>();
  rows->append(cache.rows(), 0, at);
  rows->append(*slice.rows, 0, count);
  rows->append(cache.rows(), at, cache.size());
  const Moves moves = insert_moves(cache, *slice.rows, at, positions);
  KVFOLD_RETURN_IF_ERROR(move_positions(*rows, at, at + count, moves.slice_delta));
  KVFOLD_RETURN_IF_ERROR(move_positions(*rows, at + count, rows->size(), moves.behind_delta));

  KvLanes lanes(cache.pool(), cache.shape());
  for (const Part part : kParts)
    for (int lane = 0; lane < cache.shape().lanes(); ++lane) {
      const PageTable& old = cache.lanes().table(part, lane);
      if (cache.size() == 0) {
        lanes.share(part, lane, slice.lanes, lane);
        continue;
      }
      PageTable& table = lanes.mutable_table(part, lane);
      table.append(old, 0, at, 0);
      table.append(slice.lanes.table(part, lane), 0, count, at);
      table.append(old, at, cache.size(), count);
    }
  using Kind = InsertPositions::Kind;
  const bool highest = positions.kind == Kind::kKeep || positions.kind == Kind::kFrom;
  const int64_t next = highest ? std::max(cache.next_position(), highest_follow(*rows))
                               : cache.next_position() + moves.behind_delta;
  KVFOLD_RETURN_IF_ERROR(check_position(next));
  return KvCache(std::move(lanes), std::move(rows), static_cast<int32_t>(next));
}

Result<KvCache> overwrite(const KvCache& cache, const KvSlice& slice, std::span<const int> rows) {
  KVFOLD_RETURN_IF_ERROR(check_compatible(cache.lanes(), slice));
  if (static_cast<int>(rows.size()) != slice.size())
    return Status::error(
        fmt::format("overwrite: {} rows named for a slice of {}", rows.size(), slice.size()));
  Selection target{{}, {}, {rows.begin(), rows.end()}, true, true};
  KVFOLD_RETURN_IF_ERROR(target.check(cache.shape(), cache.size()));
  KvLanes lanes = cache.lanes();
  int whole_lanes = 0;
  for (int lane = 0; lane < cache.shape().lanes(); ++lane) {
    bool whole = true;
    for (const Part part : kParts) {
      const PageTable& old = cache.lanes().table(part, lane);
      const PageTable& with = slice.lanes.table(part, lane);
      whole &= with.rows() == slice.size();
      if (with.rows() == 0) continue;
      for (int i = 0; i < slice.size(); ++i) {
        if (!with.holds(i) || old.holds(rows[i])) continue;
        return Status::error(fmt::format(
            "overwrite: layer {} head {} has no row {}; insert adds rows, overwrite replaces them",
            lane / cache.shape().kv_heads, lane % cache.shape().kv_heads, rows[i]));
      }
      lanes.replace(part, lane, splice(old, with, rows));
    }
    whole_lanes += whole ? 1 : 0;
  }
  auto out = std::make_shared<Rows>(cache.rows());
  for (int i = 0; i < slice.size() && whole_lanes == cache.shape().lanes(); ++i) {
    // The whole row is another now: its token and origin are the slice's, its position stays.
    out->tokens[rows[i]] = slice.rows->tokens[i];
    out->origins[rows[i]] = slice.rows->origins[i];
    out->origins[rows[i]].source = out->source_index(slice.rows->sources[slice.rows->origins[i].source]);
  }
  mark_held(*out, rows, slice.lanes, Operation::kOverwrite);
  return KvCache(std::move(lanes), std::move(out), cache.next_position());
}

namespace {

// Row left[i] of `from`, where `keeps(left[i])`, goes to slot i of `to`.
template <class Keeps>
void gather_kept(const PageTable& from, std::span<const int> left, const Keeps& keeps, PageTable& to) {
  for (size_t i = 0; i < left.size();) {
    size_t j = i;
    while (j < left.size() && left[j] - left[i] == static_cast<int>(j - i) && keeps(left[j])) ++j;
    to.append(from, left[i], left[i] + static_cast<int>(j - i), static_cast<int>(i) - left[i]);
    i = std::max(j, i + 1);
  }
}

// erase() of the selected rows of the selected lanes or, `but_those`, of everything else.
KvCache drop(const KvCache& cache, const Selection& selection, bool but_those) {
  const int lane_count = cache.shape().lanes();
  const std::vector<bool> lanes = lane_mask(cache.shape(), selection);
  const bool every_lane = std::find(lanes.begin(), lanes.end(), false) == lanes.end();
  std::vector<bool> chosen(static_cast<size_t>(cache.size()));
  for (const int row : selection.rows) chosen[row] = true;
  const auto drops = [&](int lane, int slot) { return (lanes[lane] && chosen[slot]) != but_those; };

  std::vector<bool> held(chosen.size());
  std::vector<bool> lost(chosen.size());
  for (int lane = 0; lane < lane_count; ++lane)
    for (const KvSpan& span : cache.lanes().table(Part::kKey, lane).spans())
      for (int slot = span.slot; slot < span.slot + span.count; ++slot)
        (drops(lane, slot) ? lost : held)[slot] = true;
  // A row stays in the table of rows while some lane holds it, or where nobody asked for it to go.
  std::vector<int> left;
  for (int slot = 0; slot < cache.size(); ++slot) {
    const bool asked = chosen[slot] != but_those || (but_those && !every_lane);
    if (held[slot] || !asked) left.push_back(slot);
  }
  auto rows = std::make_shared<Rows>(gather_rows(cache.rows(), runs_of(left)));
  for (size_t i = 0; i < left.size(); ++i)
    if (lost[left[i]]) mark(*rows, static_cast<int>(i), Operation::kErase);

  KvLanes out(cache.pool(), cache.shape());
  for (const Part part : kParts)
    for (int lane = 0; lane < lane_count; ++lane)
      gather_kept(
          cache.lanes().table(part, lane), left, [&](int slot) { return !drops(lane, slot); },
          out.mutable_table(part, lane));
  return KvCache(std::move(out), std::move(rows), cache.next_position());
}

}  // namespace

Result<KvCache> erase(const KvCache& cache, const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  if (selection.empty()) return cache.fork();
  if (!selection.keys || !selection.values)
    return Status::error("erase: parts=k or parts=v alone would leave half a row; erase takes both");
  return drop(cache, selection, false);
}

Result<KvCache> truncate(const KvCache& cache, int size) {
  if (size < 0 || size > cache.size())
    return Status::error(fmt::format("truncate to {} rows: the cache has {}", size, cache.size()));
  const std::array<Run, 1> run = {Run{0, size}};
  KvLanes lanes(cache.pool(), cache.shape());
  for (const Part part : kParts)
    for (int lane = 0; lane < cache.shape().lanes(); ++lane)
      gather(cache.lanes().table(part, lane), run, lanes.mutable_table(part, lane));
  auto rows = std::make_shared<Rows>(gather_rows(cache.rows(), run));
  const int32_t next = size == cache.size() ? cache.next_position()
                       : size == 0          ? 0
                                            : rows->positions.back() + 1;
  return KvCache(std::move(lanes), std::move(rows), next);
}

Result<KvCache> keep(const KvCache& cache, const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  if (!selection.keys || !selection.values)
    return Status::error("keep: parts=k or parts=v alone would leave half a row; keep takes both");
  return drop(cache, selection, true);
}

Result<KvCache> shift(const KvCache& cache, std::span<const int> rows, int32_t delta) {
  const Selection selection{{}, {}, {rows.begin(), rows.end()}, true, true};
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  auto out = std::make_shared<Rows>(cache.rows());
  for (const int row : rows) KVFOLD_RETURN_IF_ERROR(move_positions(*out, row, row + 1, delta));
  if (static_cast<int>(rows.size()) < cache.size())
    return KvCache(cache.lanes(), std::move(out), cache.next_position());
  const int64_t next = static_cast<int64_t>(cache.next_position()) + delta;
  KVFOLD_RETURN_IF_ERROR(check_position(next));
  return KvCache(cache.lanes(), std::move(out), static_cast<int32_t>(next));
}

Result<KvCache> set_positions(const KvCache& cache, std::span<const int32_t> positions) {
  if (static_cast<int>(positions.size()) != cache.size())
    return Status::error(
        fmt::format("set_positions: {} positions for {} rows", positions.size(), cache.size()));
  auto rows = std::make_shared<Rows>(cache.rows());
  for (int i = 0; i < cache.size(); ++i)
    KVFOLD_RETURN_IF_ERROR(
        move_positions(*rows, i, i + 1, static_cast<int64_t>(positions[i]) - rows->positions[i]));
  const int32_t next = highest_follow(*rows);
  return KvCache(cache.lanes(), std::move(rows), next);
}

Result<KvSlice> concat(std::span<const KvSlice> slices) {
  if (slices.empty()) return Status::error("concat: no slices");
  KvSlice out{KvLanes(slices[0].lanes.pool(), slices[0].shape()), nullptr};
  auto rows = std::make_shared<Rows>();
  for (const KvSlice& slice : slices) {
    KVFOLD_RETURN_IF_ERROR(check_compatible(out.lanes, slice));
    for (const Part part : kParts)
      for (int lane = 0; lane < slice.shape().lanes(); ++lane)
        out.lanes.mutable_table(part, lane)
            .append(slice.lanes.table(part, lane), 0, slice.size(), rows->size());
    rows->append(*slice.rows, 0, slice.size());
  }
  out.rows = std::move(rows);
  return out;
}

Result<KvCache> to_cache(const KvSlice& slice) {
  KVFOLD_RETURN_IF_ERROR(check_halves(slice));
  return KvCache(slice.lanes, std::make_shared<Rows>(*slice.rows), highest_follow(*slice.rows));
}

}  // namespace kvfold
