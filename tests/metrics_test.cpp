// Sampling and the trials' metrics, against closed forms and counts.
#include "experiments/harness/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/sampler.h"

namespace kvfold::testing {
namespace {

using Words = std::vector<std::string>;

TEST(Markers, AreWholeWordsWithCaseFolded) {
  EXPECT_EQ(find_markers("My name is Lyra and I live in SEATTLE.", {"lyra", "Seattle"}),
            (Words{"lyra", "Seattle"}));
  EXPECT_EQ(find_markers("Lyrae in Seattleite", {"Lyra", "Seattle"}), Words{});
  EXPECT_EQ(find_markers("It is 100°C", {"100"}), Words{"100"});
  EXPECT_EQ(find_markers("It is 1000", {"100"}), Words{});
  EXPECT_EQ(find_markers("at 100 degrees", {"100°"}), Words{});
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
  EXPECT_NEAR(mean_kl({p, p}, {p, q}), 0.125 * std::log(2.0), 1e-6);
  const std::vector<float> huge = {1e30F, -1e30F, 0};
  EXPECT_NEAR(log_probability(huge, 0), 0, 1e-12);
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  const std::vector<float> logits = {1, 3, 3, 2};
  EXPECT_EQ(argmax(logits), 1);
  EXPECT_EQ(Sampler({}).sample(logits), 1);
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
