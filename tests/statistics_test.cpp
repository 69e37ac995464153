// Lane statistics against matrices whose spectra are known.
#include "engine/kv/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/kv/ops.h"
#include "engine/random.h"
#include "tests/must.h"

namespace kvfold::testing {
namespace {

constexpr int kDim = 16;
constexpr CacheShape kShape{1, 1, kDim};

// A cache of one lane whose K rows are given and whose V rows are zero.
class Statistics : public ::testing::Test {
 protected:
  KvCache cache_of(const std::vector<std::vector<float>>& keys) {
    KvCache cache(pool_, kShape);
    EXPECT_TRUE(cache.grow(std::vector<TokenId>(keys.size())).ok());
    const std::vector<float> zero(kDim);
    for (size_t slot = 0; slot < keys.size(); ++slot) {
      const auto k = cache.row_place(Part::kKey, 0, static_cast<int>(slot));
      kv_store_row(CacheType::kF32, Part::kKey, kDim, cache.pool()->write(k.page), k.row, keys[slot].data());
      const auto v = cache.row_place(Part::kValue, 0, static_cast<int>(slot));
      kv_store_row(CacheType::kF32, Part::kValue, kDim, cache.pool()->write(v.page), v.row, zero.data());
    }
    return cache;
  }
  // Row i is `scales[i]` times unit vector i.
  KvCache diagonal(const std::vector<float>& scales) {
    std::vector<std::vector<float>> rows;
    for (size_t i = 0; i < scales.size(); ++i) {
      rows.emplace_back(kDim);
      rows.back()[i] = scales[i];
    }
    return cache_of(rows);
  }
  std::shared_ptr<PagePool> pool_ = must(PagePool::create(CacheType::kF32, kDim, 1 << 20));
};

TEST_F(Statistics, OfADiagonal) {
  const LaneStatistics s = lane_statistics(diagonal({3, -4, 0, 1}).lanes(), Part::kKey, 0);
  ASSERT_EQ(s.singular_values.size(), 4U);
  const double expected[] = {4, 3, 1, 0};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(s.singular_values[i], expected[i], 1e-7);
  const double entropy = -(0.5 * std::log(0.5) + 0.375 * std::log(0.375) + 0.125 * std::log(0.125));
  EXPECT_NEAR(s.spectral_entropy, entropy, 1e-7);
  EXPECT_NEAR(s.effective_rank, std::exp(entropy), 1e-6);
  EXPECT_EQ(s.rank_90, 2);  // 16 and 25 of 26
  EXPECT_NEAR(s.mean_norm, 2, 1e-12);
  EXPECT_NEAR(s.norm_deviation, std::sqrt(26.0 / 4 - 4), 1e-12);
  EXPECT_EQ(s.least_norm, 0);
  EXPECT_EQ(s.largest_norm, 4);
  EXPECT_NEAR(s.mean, 0, 1e-12);
  EXPECT_NEAR(s.deviation, std::sqrt(26.0 / 64), 1e-12);
}

TEST_F(Statistics, OfEqualSingularValuesTheRankIsFull) {
  const LaneStatistics s = lane_statistics(diagonal(std::vector<float>(10, 2.0F)).lanes(), Part::kKey, 0);
  EXPECT_NEAR(s.effective_rank, 10, 1e-9);
  EXPECT_EQ(s.rank_90, 9);
}

TEST_F(Statistics, OfRepeatedRowsTheRankIsOne) {
  Random random(1);
  std::vector<float> row(kDim);
  for (float& x : row) x = static_cast<float>(random.gaussian());
  const LaneStatistics s = lane_statistics(cache_of(std::vector(40, row)).lanes(), Part::kKey, 0);
  EXPECT_EQ(s.singular_values.size(), static_cast<size_t>(kDim));
  EXPECT_NEAR(s.effective_rank, 1, 1e-4);  // observed 1 + 2e-6: the other values are roots of rounding errors
  EXPECT_EQ(s.rank_90, 1);
  EXPECT_EQ(lane_statistics(cache_of({}).lanes(), Part::kKey, 0).rows, 0);
  EXPECT_EQ(lane_statistics(cache_of({row}).lanes(), Part::kValue, 0).effective_rank, 0);
}

// Turning all rows by an orthogonal matrix (a Householder reflection) keeps the spectrum; the sum of squares
// is the trace.
TEST_F(Statistics, SpectrumIsInvariantUnderRotation) {
  Random random(2);
  std::vector<double> axis(kDim);
  double length = 0;
  for (double& x : axis) {
    x = random.gaussian();
    length += x * x;
  }
  std::vector<std::vector<float>> rows(30, std::vector<float>(kDim));
  std::vector<std::vector<float>> turned = rows;
  double squares = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    double dot = 0;
    for (int c = 0; c < kDim; ++c) {
      rows[r][c] = static_cast<float>(random.gaussian() * (c + 1));
      dot += rows[r][c] * axis[c];
      squares += static_cast<double>(rows[r][c]) * rows[r][c];
    }
    for (int c = 0; c < kDim; ++c) turned[r][c] = static_cast<float>(rows[r][c] - 2 * dot / length * axis[c]);
  }
  const LaneStatistics a = lane_statistics(cache_of(rows).lanes(), Part::kKey, 0);
  const LaneStatistics b = lane_statistics(cache_of(turned).lanes(), Part::kKey, 0);
  double sum = 0;
  for (int i = 0; i < kDim; ++i) {
    EXPECT_NEAR(a.singular_values[i], b.singular_values[i], 1e-4);  // f32 rows; observed 4e-6
    sum += a.singular_values[i] * a.singular_values[i];
  }
  EXPECT_NEAR(sum, squares, 1e-9 * squares);
}

TEST_F(Statistics, Distances) {
  const KvCache a = diagonal({3, 4, 2});
  const KvCache b = diagonal({3, -4, 2, 5});
  const LaneDistance d = lane_distance(a, b, Part::kKey, 0);
  EXPECT_EQ(d.rows, 3);
  EXPECT_EQ(d.only_a, 0);
  EXPECT_EQ(d.only_b, 1);
  EXPECT_EQ(d.largest, 8);
  EXPECT_NEAR(d.rms, std::sqrt(64.0 / 48), 1e-12);
  EXPECT_NEAR(d.relative, 8 / std::sqrt(29.0), 1e-12);
  EXPECT_NEAR(d.mean_cosine, 1.0 / 3, 1e-12);
  EXPECT_EQ(d.by_slot, (std::vector<double>{0, 8, 0, -1}));
  EXPECT_EQ(lane_distance(a, a, Part::kKey, 0).relative, 0);
  EXPECT_EQ(row_norms(diagonal({3, 4}).lanes(), Part::kKey, 0, 2), (std::vector<double>{3, 4}));
}

// Rows that one of the two lacks are counted and not compared.
TEST_F(Statistics, DistancesOfLanesThatLackRows) {
  const KvCache whole = diagonal({3, 4, 2, 1});
  const auto holding = [&](const std::vector<int>& slots) {
    KvLanes lanes(pool_, kShape);
    for (const Part part : {Part::kKey, Part::kValue})
      for (const int slot : slots)
        lanes.mutable_table(part, 0).append(whole.lanes().table(part, 0), slot, slot + 1, 0);
    return KvCache(lanes, std::make_shared<Rows>(whole.rows()), 4);
  };
  const KvCache a = holding({0, 2, 3});
  const KvCache b = holding({0, 1});
  for (const auto& [x, y] : {std::pair{a, b}, std::pair{b, a}}) {
    const LaneDistance d = lane_distance(x, y, Part::kKey, 0);
    EXPECT_EQ(d.rows, 1);
    EXPECT_EQ(d.only_a, x.lanes().table(Part::kKey, 0).rows() - 1);
    EXPECT_EQ(d.only_b, y.lanes().table(Part::kKey, 0).rows() - 1);
    EXPECT_EQ(d.largest, 0);
    EXPECT_EQ(d.mean_cosine, 1);
    EXPECT_EQ(d.by_slot, (std::vector<double>{0, -1, -1, -1}));
  }
  EXPECT_EQ(row_norms(b.lanes(), Part::kKey, 0, 4), (std::vector<double>{3, 4, -1, -1}));
  const LaneDistance none = lane_distance(holding({3}), holding({0, 1, 2}), Part::kKey, 0);
  EXPECT_EQ(none.rows, 0);
  EXPECT_EQ(none.only_a, 1);
  EXPECT_EQ(none.only_b, 3);
  EXPECT_EQ(none.rms, 0);
  EXPECT_EQ(none.by_slot, (std::vector<double>{-1, -1, -1, -1}));
}

// Rows that hold no numbers are not equal to any; two infinities are.
TEST_F(Statistics, WhatIsNoNumberDiffers) {
  const auto largest = [&](float a, float b) {
    return lane_distance(diagonal({a, 1, 0}), diagonal({b, 1, 5}), Part::kKey, 0).largest;
  };
  EXPECT_TRUE(std::isnan(largest(NAN, 1)));
  EXPECT_TRUE(std::isnan(largest(1, NAN)));
  EXPECT_EQ(largest(INFINITY, INFINITY), 5);
  EXPECT_EQ(largest(INFINITY, 1), INFINITY);
  EXPECT_EQ(largest(1, 2), 5);
}

// A row of zeros has no direction.
TEST_F(Statistics, CosinesOfZeroRowsAreLeftOut) {
  const LaneDistance d = lane_distance(diagonal({0, 4, 2}), diagonal({3, 0, 2}), Part::kKey, 0);
  EXPECT_EQ(d.mean_cosine, 1);
  EXPECT_NEAR(d.relative, std::sqrt(25.0 / 20), 1e-12);
  EXPECT_EQ(lane_distance(diagonal({0}), diagonal({3}), Part::kKey, 0).mean_cosine, 0);
}

}  // namespace
}  // namespace kvfold::testing
