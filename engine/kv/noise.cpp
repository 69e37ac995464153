// Made-up vectors: the controls that say what a cache without information looks like.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "engine/kv/lane_matrix.h"
#include "engine/kv/ops.h"
#include "engine/printable.h"
#include "engine/random.h"

namespace kvfold {
namespace {

std::vector<double> column_means(const LaneMatrix& m) {
  std::vector<double> mean(m.columns);
  for (int r = 0; r < m.rows; ++r)
    for (int c = 0; c < m.columns; ++c) mean[c] += static_cast<double>(m.row(r)[c]) / m.rows;
  return mean;
}

void make_unit(LaneMatrix& m, Random& random) {
  for (float& x : m.data) x = static_cast<float>(random.gaussian());
}

// N(mean, deviation) of all the lane's elements, then each row scaled to the norm that it had.
void make_matched(LaneMatrix& m, Random& random) {
  const auto n = static_cast<double>(m.data.size());
  const double mean = std::accumulate(m.data.begin(), m.data.end(), 0.0) / n;
  double variance = 0;
  for (const float x : m.data) variance += (x - mean) * (x - mean) / n;
  for (int r = 0; r < m.rows; ++r) {
    const double wanted = norm(m.row(r), m.columns);
    for (int c = 0; c < m.columns; ++c)
      m.row(r)[c] = static_cast<float>(mean + std::sqrt(variance) * random.gaussian());
    const double made = norm(m.row(r), m.columns);
    for (int c = 0; c < m.columns; ++c)
      m.row(r)[c] = static_cast<float>(m.row(r)[c] * (made > 0 ? wanted / made : 0));
  }
}

// mean + sum over rows of g_r (row_r - mean) / sqrt(n - 1): a gaussian whose covariance over channels is the
// sample's.
void make_channel(LaneMatrix& m, Random& random) {
  const std::vector<double> mean = column_means(m);
  const LaneMatrix natural = m;
  const double scale = m.rows > 1 ? 1.0 / std::sqrt(m.rows - 1.0) : 0.0;
  for (int r = 0; r < m.rows; ++r) {
    std::vector<double> row = mean;
    for (int s = 0; s < m.rows; ++s) {
      const double g = random.gaussian() * scale;
      for (int c = 0; c < m.columns; ++c) row[c] += g * (natural.row(s)[c] - mean[c]);
    }
    std::copy(row.begin(), row.end(), m.row(r));
  }
}

void make_permuted(LaneMatrix& m, std::span<const int> order) {
  const LaneMatrix natural = m;
  // Lanes that lack rows keep the order among those they have.
  std::vector<int> present;
  for (const int slot : order) {
    const auto at = std::lower_bound(m.slots.begin(), m.slots.end(), slot);
    if (at != m.slots.end() && *at == slot) present.push_back(static_cast<int>(at - m.slots.begin()));
  }
  for (int r = 0; r < m.rows; ++r) std::copy_n(natural.row(present[r]), m.columns, m.row(r));
}

void make_mean(LaneMatrix& m) {
  const std::vector<double> mean = column_means(m);
  for (int r = 0; r < m.rows; ++r) std::copy(mean.begin(), mean.end(), m.row(r));
}

// A random order of 0 .. n - 1 that is not the natural one where n allows (Fisher and Yates).
std::vector<int> permutation(int n, Random& random) {
  std::vector<int> order(n);
  do {
    std::iota(order.begin(), order.end(), 0);
    for (int i = n - 1; i > 0; --i) std::swap(order[i], order[random.below(static_cast<uint64_t>(i) + 1)]);
  } while (n > 1 && std::is_sorted(order.begin(), order.end()));
  return order;
}

void make(NoiseKind kind, LaneMatrix& m, Random& random, std::span<const int> order) {
  switch (kind) {
    case NoiseKind::kUnit:
      return make_unit(m, random);
    case NoiseKind::kMatched:
      return make_matched(m, random);
    case NoiseKind::kChannel:
      return make_channel(m, random);
    case NoiseKind::kPermuted:
      return make_permuted(m, order);
    case NoiseKind::kZero:
      return std::fill(m.data.begin(), m.data.end(), 0.0F), void();
    case NoiseKind::kMean:
      return make_mean(m);
  }
}

}  // namespace

Result<NoiseKind> parse_noise_kind(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, NoiseKind>, 6> kNames = {
      {{"unit", NoiseKind::kUnit},
       {"matched", NoiseKind::kMatched},
       {"channel", NoiseKind::kChannel},
       {"permuted", NoiseKind::kPermuted},
       {"zero", NoiseKind::kZero},
       {"mean", NoiseKind::kMean}}};
  for (const auto& [name, kind] : kNames)
    if (name == text) return kind;
  return Status::error(
      fmt::format("noise '{}': expected unit, matched, channel, permuted, zero or mean", printable(text)));
}

Result<KvSlice> noise(const KvSlice& like, NoiseKind kind, uint64_t seed) {
  const std::shared_ptr<PagePool>& pool = like.lanes.pool();
  constexpr std::array kParts = {Part::kKey, Part::kValue};
  size_t pages = 0;
  for (const Part part : kParts)
    for (int lane = 0; lane < like.shape().lanes(); ++lane)
      pages += pages_of_rows(like.lanes.table(part, lane).rows());
  KVFOLD_RETURN_IF_ERROR(pool->require(pages));

  Random order_random(derive_seed(seed, 0));
  const std::vector<int> order = permutation(like.size(), order_random);
  KvLanes lanes(pool, like.shape());
  for (const Part part : kParts)
    for (int lane = 0; lane < like.shape().lanes(); ++lane) {
      if (like.lanes.table(part, lane).rows() == 0) continue;
      LaneMatrix m = load_lane(like.lanes, part, lane);
      Random random(derive_seed(seed, 1 + 2 * static_cast<uint64_t>(lane) + (part == Part::kKey ? 0 : 1)));
      make(kind, m, random, order);
      KVFOLD_RETURN_IF_ERROR(store_lane(lanes, part, lane, m));
    }
  auto rows = std::make_shared<Rows>(*like.rows);
  mark_held(*rows, Selection::all(like.shape(), like.size()).rows, lanes, Operation::kNoise);
  return KvSlice{std::move(lanes), std::move(rows)};
}

Result<KvCache> noise(const KvCache& cache, const Selection& selection, NoiseKind kind, uint64_t seed) {
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(cache, selection));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice made_up, noise(slice, kind, seed));
  KvLanes lanes = cache.lanes();
  bool any = false;
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < cache.shape().lanes(); ++lane) {
      const PageTable& with = made_up.lanes.table(part, lane);
      if (with.rows() == 0) continue;
      lanes.replace(part, lane, splice(cache.lanes().table(part, lane), with, selection.rows));
      any = true;
    }
  if (!any) return cache.fork();
  auto rows = std::make_shared<Rows>(cache.rows());
  mark_held(*rows, selection.rows, made_up.lanes, Operation::kNoise);
  return KvCache(std::move(lanes), std::move(rows), cache.next_position());
}

Result<KvSlice> fill_missing(const KvSlice& slice, const KvSlice& source, std::optional<NoiseKind> kind,
                             uint64_t seed) {
  if (slice.shape() != source.shape() || slice.size() != source.size())
    return Status::error("fill: slice and source differ in shape or rows");
  if (slice.lanes.pool() != source.lanes.pool())
    return Status::error("fill: slice and source are of different page pools");
  KvSlice missing{KvLanes(slice.lanes.pool(), slice.shape()), source.rows};
  constexpr std::array kParts = {Part::kKey, Part::kValue};
  for (const Part part : kParts) {
    const Part other = part == Part::kKey ? Part::kValue : Part::kKey;
    for (int lane = 0; lane < slice.shape().lanes(); ++lane) {
      const PageTable& there = slice.lanes.table(other, lane);
      const PageTable& from = source.lanes.table(part, lane);
      if (slice.lanes.table(part, lane).rows() > 0 || there.rows() == 0) continue;
      if (!from.holds_same_slots(there))
        return Status::error(
            fmt::format("fill: the source has {} rows in layer {} head {} where {} are missing{}",
                        from.rows(), lane / slice.shape().kv_heads, lane % slice.shape().kv_heads,
                        there.rows(), from.rows() == there.rows() ? ", and not the same" : ""));
      missing.lanes.share(part, lane, source.lanes, lane);
    }
  }
  if (kind) {
    KVFOLD_ASSIGN_OR_RETURN(missing, noise(missing, *kind, seed));
  }
  KvSlice out = slice;
  for (const Part part : kParts)
    for (int lane = 0; lane < slice.shape().lanes(); ++lane)
      if (missing.lanes.table(part, lane).rows() > 0) out.lanes.share(part, lane, missing.lanes, lane);
  auto rows = std::make_shared<Rows>(*slice.rows);
  mark_held(*rows, Selection::all(slice.shape(), slice.size()).rows, missing.lanes, Operation::kFill);
  out.rows = std::move(rows);
  return out;
}

}  // namespace kvfold
