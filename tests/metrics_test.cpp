// Sampling and the trials' metrics, against closed forms and counts.
#include "experiments/harness/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/sampler.h"
#include "experiments/harness/distribution.h"

namespace kvfold::testing {
namespace {

using Words = std::vector<std::string>;

TEST(Markers, AreWholeWordsWithCaseFolded) {
  EXPECT_EQ(find_markers("My name is Lyra and I live in SEATTLE.", {"lyra", "Seattle"}),
            (Words{"lyra", "Seattle"}));
  EXPECT_EQ(find_markers("Lyrae in Seattleite", {"Lyra", "Seattle"}), Words{});
  EXPECT_EQ(find_markers("It is 100°C", {"100"}), Words{"100"});
  EXPECT_EQ(find_markers("It is 1000", {"100"}), Words{});
  EXPECT_EQ(find_markers("at 100 degrees", {"100°"}), Words{"100°"});
  EXPECT_EQ(find_markers("at 1000 degrees", {"100°"}), Words{});
  EXPECT_EQ(find_markers("1,100 or 100.5, 3.100 and 100,000", {"100"}), Words{});
  EXPECT_EQ(find_markers("from 0, 100.", {"100"}), Words{"100"});
  EXPECT_EQ(find_markers("100\u00BAC", {"100"}), Words{"100"}) << "an ordinal sign for a degree";
  EXPECT_EQ(find_markers("No.Lyra,Seattle", {"Lyra", "Seattle"}), (Words{"Lyra", "Seattle"}));
  EXPECT_EQ(find_markers("By Dr Helena Frost", {"Frost."}), Words{"Frost."});
  EXPECT_EQ(find_markers("Once upon a time.", {"once upon a time"}), Words{"once upon a time"});
  EXPECT_EQ(find_markers("STRASSE", {"straße"}), Words{"straße"});
  EXPECT_EQ(find_markers("caf\u0065\u0301!", {"café"}), Words{"café"});
  EXPECT_EQ(find_markers("", {"a"}), Words{});
  EXPECT_EQ(find_markers("text", {""}), Words{});
}

TEST(Metrics, PerplexityIsExpOfMeanNll) {
  const std::vector<double> p = {std::log(0.5), std::log(0.125)};
  EXPECT_NEAR(*perplexity(p), 4.0, 1e-12);
  EXPECT_FALSE(perplexity({}).has_value());
}

TEST(Metrics, LogProbabilityAndKl) {
  // Distributions (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2), up to a constant in the logits.
  const std::vector<float> p = {static_cast<float>(std::log(2.0)) + 50, 50, 50};
  const std::vector<float> q = {-3, -3, static_cast<float>(std::log(2.0)) - 3};
  EXPECT_NEAR(log_probability(p, 0), std::log(0.5), 1e-6);
  EXPECT_NEAR(kl_divergence(p, q), 0.5 * std::log(2.0) + 0.25 * std::log(0.5), 1e-6);
  EXPECT_NEAR(kl_divergence(p, p), 0, 1e-12);
  const std::vector<float> huge = {1e30F, -1e30F, 0};
  EXPECT_NEAR(log_probability(huge, 0), 0, 1e-12);
}

// The same sums in long double, in another order.
long double slow_log_sum_exp(const std::vector<float>& x) {
  long double sum = 0;
  for (size_t i = x.size(); i-- > 0;) sum += std::exp(static_cast<long double>(x[i]));
  return std::log(sum);
}

std::vector<float> random_logits(size_t n, uint64_t seed, double scale) {
  Random random(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(scale * random.gaussian());
  return out;
}

TEST(Distribution, AgreesWithLongDouble) {
  for (const size_t n : {1, 2, 15, 16, 17, 511, 513, 49152})
    for (const double scale : {0.1, 4.0, 20.0}) {
      const std::vector<float> p = random_logits(n, n, scale);
      const std::vector<float> q = random_logits(n, n + 1, scale);
      // Observed: 7e-8 at most.
      EXPECT_NEAR(log_sum_exp(p), static_cast<double>(slow_log_sum_exp(p)), 4e-7) << n << " " << scale;
      long double kl = 0;
      const long double zp = slow_log_sum_exp(p);
      const long double zq = slow_log_sum_exp(q);
      for (size_t i = 0; i < n; ++i) kl += std::exp(p[i] - zp) * ((p[i] - zp) - (q[i] - zq));
      // Observed: 3e-7 relative at most.
      EXPECT_NEAR(Distribution(p).kl_to(q), static_cast<double>(kl), 1e-6 * (1 + static_cast<double>(kl)));
      EXPECT_NEAR(Distribution(p).kl_to(p), 0, 1e-9);
    }
}

TEST(Distribution, KlInClosedForm) {
  // (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2), up to a constant in the logits.
  const std::vector<float> p = {static_cast<float>(std::log(2.0)) + 50, 50, 50};
  const std::vector<float> q = {-3, -3, static_cast<float>(std::log(2.0)) - 3};
  EXPECT_NEAR(Distribution(p).kl_to(q), 0.5 * std::log(2.0) + 0.25 * std::log(0.5), 1e-6);
}

using Ids = std::vector<TokenId>;

TEST(Loops, DistinctNGrams) {
  EXPECT_FALSE(distinct_ratio(Ids{}, 1).has_value());
  EXPECT_FALSE(distinct_ratio(Ids{7}, 1).has_value()) << "nothing can repeat";
  EXPECT_FALSE(distinct_ratio(Ids{7, 7}, 2).has_value());
  EXPECT_DOUBLE_EQ(*distinct_ratio(Ids{7, 7}, 1), 0.5);
  EXPECT_DOUBLE_EQ(*distinct_ratio(Ids{1, 2, 1, 2, 1}, 1), 2.0 / 5);
  EXPECT_DOUBLE_EQ(*distinct_ratio(Ids{1, 2, 1, 2, 1}, 2), 2.0 / 4);
  EXPECT_DOUBLE_EQ(*distinct_ratio(Ids{1, 2, 3, 4}, 3), 1.0);
}

TEST(Loops, LongestRepeatedSuffix) {
  EXPECT_FALSE(longest_repeated_suffix(Ids{1}).has_value());
  EXPECT_EQ(*longest_repeated_suffix(Ids{1, 2, 3}), 0);
  EXPECT_EQ(*longest_repeated_suffix(Ids{1, 2, 3, 9, 2, 3}), 2);
  EXPECT_EQ(*longest_repeated_suffix(Ids{2, 3, 9, 2, 3, 4}), 0) << "a suffix, not any run";
  // A loop of period p over L tokens, whatever came before it, has L - p.
  for (int p = 1; p <= 5; ++p) {
    Ids ids = {100, 101};
    for (int i = 0; i < 17; ++i) ids.push_back(i % p);
    EXPECT_EQ(*longest_repeated_suffix(ids), 17 - p) << p;
  }
}

TEST(Loops, ZlibRatio) {
  EXPECT_FALSE(zlib_ratio("").has_value());
  EXPECT_GT(*zlib_ratio("ab"), 1.0) << "the header alone is longer";
  std::string loop;
  for (int i = 0; i < 40; ++i) loop += "and so on, ";
  EXPECT_LT(*zlib_ratio(loop), 0.1);
  EXPECT_GT(*zlib_ratio("Sphinx of black quartz, judge my vow"), 0.9);
}

TEST(Copying, LongestCommonRun) {
  EXPECT_EQ(longest_common_run(Ids{}, Ids{1}), 0);
  EXPECT_EQ(longest_common_run(Ids{5, 1, 2, 3, 6}, Ids{1, 2, 4, 1, 2, 3}), 3);
  EXPECT_EQ(longest_common_run(Ids{1, 3, 2}, Ids{1, 2, 3}), 1) << "a run, not a subsequence";
  const TextShape shape = text_shape(Ids{5, 1, 2, 3}, "text", Ids{1, 2, 3});
  EXPECT_EQ(shape.copy_run, 3);
  EXPECT_DOUBLE_EQ(*shape.copy_share, 0.75);
  EXPECT_FALSE(text_shape(Ids{}, "", Ids{1}).copy_share.has_value());
}

TEST(Contrast, TransferFraction) {
  EXPECT_DOUBLE_EQ(*transfer_fraction(3, 1, 5), 0.5);
  EXPECT_DOUBLE_EQ(*transfer_fraction(-1, 1, 5), -0.5);
  EXPECT_FALSE(transfer_fraction(3, 1, 1.05).has_value());
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  const std::vector<float> logits = {1, 3, 3, 2};
  EXPECT_EQ(argmax(logits), 1);
  EXPECT_EQ(Sampler({}).sample(logits), 1);
}

TEST(Sampler, LikeliestAreInOrder) {
  const float nan = std::nanf("");
  const std::vector<float> logits = {-1, 3, nan, 3, 2, -INFINITY, 3, nan, -0.0F, 0};
  const std::vector<TokenId> order = {1, 3, 6, 4, 8, 9, 0, 5, 2, 7};
  for (size_t k = 1; k <= logits.size(); ++k) {
    std::vector<TokenLogit> found(k);
    find_likeliest(logits, found);
    for (size_t i = 0; i < k; ++i) EXPECT_EQ(found[i].id, order[i]) << k;
  }
  EXPECT_EQ(argmax(logits), 1);
  EXPECT_EQ(argmax(std::vector<float>{nan, nan, -3}), 2);
}

TEST(Sampler, CandidatesAreAllThatItNeeds) {
  std::vector<float> logits;
  for (int i = 0; i < 100; ++i) logits.push_back(static_cast<float>(i * 37 % 11));
  for (const SamplerOptions& options :
       {SamplerOptions{}, SamplerOptions{1, 5, 1, 4}, SamplerOptions{0.7F, 200, 0.9F, 4}}) {
    Sampler all(options);
    Sampler some(options);
    ASSERT_GT(some.candidates(), 0);
    std::vector<TokenLogit> candidates(std::min<size_t>(some.candidates(), logits.size()));
    for (int i = 0; i < 50; ++i) {
      find_likeliest(logits, candidates);
      ASSERT_EQ(some.sample(candidates), all.sample(logits));
    }
  }
  EXPECT_EQ(Sampler({1, 0, 1, 4}).candidates(), 0);
}

std::map<TokenId, int> draw(const SamplerOptions& options, const std::vector<float>& logits, int n) {
  Sampler sampler(options);
  std::map<TokenId, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.sample(logits)];
  return counts;
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0, static_cast<float>(std::log(2.0)), static_cast<float>(std::log(5.0))};
  constexpr int kDraws = 80000;
  auto counts = draw({1, 0, 1, 7}, logits, kDraws);
  const double shares[] = {0.125, 0.25, 0.625};
  for (TokenId id = 0; id < 3; ++id)
    EXPECT_NEAR(counts[id] / static_cast<double>(kDraws), shares[id], 0.009);  // five standard errors
}

TEST(Sampler, TemperatureSharpensAndFlattens) {
  const std::vector<float> logits = {0, static_cast<float>(std::log(3.0))};
  constexpr int kDraws = 40000;
  // At temperature 2 the odds are the square root of 3, at 1/2 they are 9.
  EXPECT_NEAR(draw({2, 0, 1, 1}, logits, kDraws)[1] / static_cast<double>(kDraws),
              std::sqrt(3) / (1 + std::sqrt(3)), 0.012);
  EXPECT_NEAR(draw({0.5F, 0, 1, 1}, logits, kDraws)[1] / static_cast<double>(kDraws), 0.9, 0.008);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  const std::vector<float> logits = {0, 1, 2, 3};
  const auto k2 = draw({1, 2, 1, 3}, logits, 4000);
  EXPECT_EQ(k2.size(), 2U);
  EXPECT_TRUE(k2.contains(2) && k2.contains(3));
  // The likeliest has 0.644 of the mass, the next 0.237: together past 0.8.
  const auto p = draw({1, 0, 0.8F, 3}, logits, 4000);
  EXPECT_EQ(p.size(), 2U);
  EXPECT_EQ(draw({1, 0, 0.1F, 3}, logits, 1000).size(), 1U);
  EXPECT_EQ(draw({1, 1, 1, 3}, logits, 1000).size(), 1U);
}

TEST(Sampler, SeedsDecide) {
  const std::vector<float> logits(size_t{50}, 0.0F);
  const auto sequence = [&](uint64_t seed) {
    Sampler sampler({1, 0, 1, seed});
    std::vector<TokenId> out;
    for (int i = 0; i < 50; ++i) out.push_back(sampler.sample(logits));
    return out;
  };
  EXPECT_EQ(sequence(1), sequence(1));
  EXPECT_NE(sequence(1), sequence(2));
}

}  // namespace
}  // namespace kvfold::testing
