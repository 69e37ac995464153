// What noise is made of, and what fills the halves that a slice lacks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/kv/lane_matrix.h"
#include "tests/random_cache.h"

namespace kvfold::testing {
namespace {

TEST(NoiseKinds, HaveNames) {
  EXPECT_EQ(must(parse_noise_kind("unit")), NoiseKind::kUnit);
  EXPECT_EQ(must(parse_noise_kind("mean")), NoiseKind::kMean);
  EXPECT_EQ(error_of(parse_noise_kind("loud")),
            "noise 'loud': expected unit, matched, channel, permuted, zero or mean");
}

double mean_of(const LaneMatrix& m) {
  return std::accumulate(m.data.begin(), m.data.end(), 0.0) / static_cast<double>(m.data.size());
}

class NoiseOf : public ::testing::Test {
 protected:
  // Visits each lane's natural and made-up vectors.
  void for_lanes(NoiseKind kind,
                 const std::function<void(const LaneMatrix& natural, const LaneMatrix& made)>& visit) {
    const KvSlice natural = slice_of(cache_);
    const KvSlice made = must(noise(natural, kind, 5));
    EXPECT_EQ(made.rows->positions, natural.rows->positions);
    EXPECT_EQ(made.rows->tokens, natural.rows->tokens);
    for (const Part part : {Part::kKey, Part::kValue})
      for (int lane = 0; lane < kShape.lanes(); ++lane)
        visit(load_lane(natural.lanes, part, lane), load_lane(made.lanes, part, lane));
  }
  std::shared_ptr<PagePool> pool_ = make_pool();
  KvCache cache_ = random_cache(pool_, 90, 3);
};

TEST_F(NoiseOf, UnitIsStandardNormal) {
  for_lanes(NoiseKind::kUnit, [](const LaneMatrix&, const LaneMatrix& made) {
    double squares = 0;
    for (const float x : made.data) squares += static_cast<double>(x) * x;
    // 5,760 values: standard errors 0.013 and 0.019.
    EXPECT_NEAR(mean_of(made), 0, 0.06);
    EXPECT_NEAR(squares / static_cast<double>(made.data.size()), 1, 0.09);
  });
}

TEST_F(NoiseOf, MatchedKeepsEachRowsNorm) {
  for_lanes(NoiseKind::kMatched, [](const LaneMatrix& natural, const LaneMatrix& made) {
    for (int r = 0; r < natural.rows; ++r) {
      EXPECT_NEAR(norm(made.row(r), made.columns), norm(natural.row(r), natural.columns), 1e-4);
      double dot = 0;
      for (int c = 0; c < made.columns; ++c) dot += made.row(r)[c] * natural.row(r)[c];
      EXPECT_LT(dot, 0.9 * norm(natural.row(r), made.columns) * norm(made.row(r), made.columns));
    }
  });
}

TEST_F(NoiseOf, ChannelKeepsMeanAndVarianceOfChannels) {
  for_lanes(NoiseKind::kChannel, [](const LaneMatrix& natural, const LaneMatrix& made) {
    double natural_variance = 0;
    double made_variance = 0;
    for (const float x : natural.data) natural_variance += std::pow(x - mean_of(natural), 2);
    for (const float x : made.data) made_variance += std::pow(x - mean_of(made), 2);
    EXPECT_NEAR(mean_of(made), mean_of(natural), 0.4);      // observed: up to 0.16
    EXPECT_NEAR(made_variance / natural_variance, 1, 0.2);  // observed: up to 0.07
  });
}

TEST_F(NoiseOf, PermutedHasTheSameRowsInOneOrder) {
  std::vector<int> first_order;
  for_lanes(NoiseKind::kPermuted, [&](const LaneMatrix& natural, const LaneMatrix& made) {
    std::vector<int> order;
    for (int r = 0; r < made.rows; ++r)
      for (int s = 0; s < natural.rows; ++s)
        if (std::equal(made.row(r), made.row(r) + made.columns, natural.row(s))) order.push_back(s);
    if (first_order.empty()) first_order = order;
    EXPECT_EQ(order, first_order);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    std::sort(order.begin(), order.end());
    for (int r = 0; r < natural.rows; ++r) ASSERT_EQ(order[r], r);
  });
}

TEST_F(NoiseOf, ZeroAndMean) {
  for_lanes(NoiseKind::kZero, [](const LaneMatrix&, const LaneMatrix& made) {
    for (const float x : made.data) ASSERT_EQ(x, 0);
  });
  for_lanes(NoiseKind::kMean, [](const LaneMatrix& natural, const LaneMatrix& made) {
    for (int c = 0; c < natural.columns; ++c) {
      double mean = 0;
      for (int r = 0; r < natural.rows; ++r) mean += natural.row(r)[c] / static_cast<double>(natural.rows);
      for (int r = 0; r < made.rows; ++r) ASSERT_NEAR(made.row(r)[c], mean, 1e-5);
    }
  });
}

TEST_F(NoiseOf, SeedsDecide) {
  const KvSlice natural = slice_of(cache_);
  const auto made = [&](uint64_t seed) {
    return load_lane(must(noise(natural, NoiseKind::kMatched, seed)).lanes, Part::kKey, 1).data;
  };
  EXPECT_EQ(made(1), made(1));
  EXPECT_NE(made(1), made(2));
}

TEST_F(NoiseOf, TheOtherHalfIsFilled) {
  const KvSlice keys = slice_of(cache_, "parts=k rows=3-40");
  const KvSlice both = slice_of(cache_, "rows=3-40");
  const KvSlice filled = must(fill_missing(keys, both, NoiseKind::kZero, 1));
  const KvCache cache = must(to_cache(filled));
  EXPECT_EQ(load_lane(cache.lanes(), Part::kKey, 2).data, load_lane(both.lanes, Part::kKey, 2).data);
  for (const float x : load_lane(cache.lanes(), Part::kValue, 2).data) ASSERT_EQ(x, 0);
  const KvSlice natural = must(fill_missing(keys, both, std::nullopt, 1));
  EXPECT_EQ(load_lane(natural.lanes, Part::kValue, 2).data, load_lane(both.lanes, Part::kValue, 2).data);
}

}  // namespace
}  // namespace kvfold::testing
