// The weights with which tokens attend to rows, and the share of them that some rows get.
#include "engine/attention_weights.h"

#include <gtest/gtest.h>

#include <numeric>

#include "engine/kv/ops.h"
#include "engine/random.h"
#include "experiments/harness/attention_mass.h"
#include "tests/must.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

std::vector<TokenId> random_tokens(int count, uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (TokenId& id : ids) id = static_cast<TokenId>(random.below(256));
  return ids;
}

std::vector<float> row_of(const KvCache& cache, Part part, int lane, int slot) {
  std::vector<float> row(cache.shape().head_dim);
  cache.lanes().table(part, lane).load(part, slot, row.data());
  return row;
}

class Attention : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  OpenOptions options_ = [] {
    OpenOptions options;
    options.session.cache_type = CacheType::kF32;
    return options;
  }();
  std::unique_ptr<Session> session_ = tiny_session(folder_, {}, options_);
  std::vector<int> layers_ = {0, 1};
  std::vector<int> heads_ = {0, 1, 2, 3};
};

TEST_F(Attention, WeightsTimesValuesIsWhatTheKernelsGive) {
  KvCache cache = session_->make_cache();
  ASSERT_TRUE(session_->feed(cache, random_tokens(300, 1)).ok());
  Selection hole = Selection::all(cache.shape(), cache.size());
  hole.layers = {1};
  hole.rows = {3, 4, 5, 90};
  cache = must(erase(cache, hole));
  KvCache probed = cache.fork();
  const std::vector<TokenId> tokens = random_tokens(5, 2);
  const AttentionWeights weights = must(feed_with_attention(*session_, probed, tokens, layers_, heads_));
  ASSERT_EQ(weights.rows, 305);

  Backend& backend = session_->model().backend();
  RopeTables rope(session_->model().config());
  const auto probe = [&](int layer, std::span<const BatchSequence> batch, const float* q) {
    const std::shared_ptr<float> out = must(backend.allocate(size_t{5} * 64));
    backend.attention(batch, layer, {4, 2, 16}, rope.view(), q, out.get());
    for (int head = 0; head < 4; ++head)
      for (int query = 0; query < 5; ++query)
        for (int d = 0; d < 16; ++d) {
          double expected = 0;
          for (int slot = 0; slot < weights.rows; ++slot) {
            const float w = weights.of(layer, head, query)[slot];
            if (w > 0) expected += w * row_of(cache, Part::kValue, layer * 2 + head / 2, slot)[d];
          }
          // observed: up to 2.9e-6
          ASSERT_NEAR(out.get()[(query * 4 + head) * 16 + d], expected, 1e-5);
        }
  };
  const Feed feed{&cache, tokens, Wanted::kNone};
  ASSERT_TRUE(session_->feed(std::span(&feed, 1), {}, probe).ok());
}

TEST_F(Attention, WeightsAddUpAndRespectOrderAndAbsence) {
  KvCache cache = session_->make_cache();
  ASSERT_TRUE(session_->feed(cache, random_tokens(40, 1)).ok());
  Selection hole = Selection::all(cache.shape(), cache.size());
  hole.layers = {1};
  hole.heads = {1};
  hole.rows = {7};
  cache = must(erase(cache, hole));
  const AttentionWeights weights =
      must(feed_with_attention(*session_, cache, random_tokens(4, 2), layers_, heads_));
  for (int layer = 0; layer < 2; ++layer)
    for (int head = 0; head < 4; ++head)
      for (int query = 0; query < 4; ++query) {
        const std::span<const float> w = weights.of(layer, head, query);
        EXPECT_NEAR(std::accumulate(w.begin(), w.end(), 0.0), 1, 1e-6);
        for (int slot = 40 + query + 1; slot < weights.rows; ++slot) EXPECT_EQ(w[slot], 0);
        EXPECT_EQ(w[7] == 0, layer == 1 && head >= 2);
      }
}

TEST_F(Attention, RefusesWhatDoesNotExist) {
  KvCache cache = session_->make_cache();
  const std::vector<TokenId> tokens = random_tokens(2, 1);
  const std::vector<int> beyond = {2};
  EXPECT_NE(
      feed_with_attention(*session_, cache, tokens, beyond, heads_).status().message().find("0-1 exist"),
      std::string::npos);
  const std::vector<int> head = {4};
  EXPECT_NE(feed_with_attention(*session_, cache, tokens, layers_, head).status().message().find("0-3 exist"),
            std::string::npos);
  EXPECT_EQ(cache.size(), 0);
}

TEST_F(Attention, ChunksOfTheTextDoNotShow) {
  OpenOptions small = options_;
  small.session.chunk = 3;
  const std::unique_ptr<Session> other = tiny_session(folder_, {}, small);
  const std::vector<TokenId> tokens = random_tokens(10, 3);
  const std::vector<int> heads = {3, 0, 1};
  KvCache a = session_->make_cache();
  KvCache b = other->make_cache();
  EXPECT_EQ(must(feed_with_attention(*session_, a, tokens, layers_, heads)).weights,
            must(feed_with_attention(*other, b, tokens, layers_, heads)).weights);
}

std::vector<int> slots(int begin, int end) {
  std::vector<int> out(static_cast<size_t>(end - begin));
  std::iota(out.begin(), out.end(), begin);
  return out;
}

// Keys that are all zero get equal weights, so that rows' mass is in proportion to their number.
TEST_F(Attention, MassOfEqualKeysIsTheirShare) {
  KvCache cache = session_->make_cache();
  ASSERT_TRUE(session_->feed(cache, random_tokens(40, 1)).ok());
  Selection keys = Selection::all(cache.shape(), cache.size());
  keys.values = false;
  cache = must(scale(cache, 0, keys));
  const std::vector<TokenId> query = random_tokens(1, 2);
  const AttentionWeights weights = must(feed_with_attention(*session_, cache, query, layers_, heads_));
  const AttentionMass injected = attention_mass(weights, slots(3, 13));
  const AttentionMass native = attention_mass(weights, slots(13, 40));
  ASSERT_EQ(injected.by_head.size(), 8U);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(injected.by_head[i] / native.by_head[i], 10.0 / 27, 1e-6);
}

TEST_F(Attention, MassIsSharedOutAmongTheRowsAndAveraged) {
  KvCache cache = session_->make_cache();
  ASSERT_TRUE(session_->feed(cache, random_tokens(20, 1)).ok());
  const AttentionWeights weights =
      must(feed_with_attention(*session_, cache, random_tokens(4, 2), layers_, heads_));
  const AttentionMass all = attention_mass(weights, slots(0, 24));
  const AttentionMass some = attention_mass(weights, std::vector<int>{0, 5, 6, 23});
  std::vector<int> others;
  for (int slot = 0; slot < 24; ++slot)
    if (slot != 0 && slot != 5 && slot != 6 && slot != 23) others.push_back(slot);
  const AttentionMass rest = attention_mass(weights, others);
  EXPECT_NEAR(all.mean, 1, 1e-6);
  EXPECT_EQ(attention_mass(weights, {}).mean, 0);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(some.by_head[i] + rest.by_head[i], 1, 1e-6);
  for (int layer = 0; layer < 2; ++layer)
    EXPECT_NEAR(some.by_layer[layer],
                std::accumulate(&some.by_head[layer * 4], &some.by_head[layer * 4] + 4, 0.0) / 4, 1e-12);
  EXPECT_NEAR(some.mean, (some.by_layer[0] + some.by_layer[1]) / 2, 1e-12);
  double by_hand = 0;  // layer 1, head 2
  for (int query = 0; query < 4; ++query)
    for (const int slot : {0, 5, 6, 23}) by_hand += weights.weights[(((1 * 4 + 2) * 4) + query) * 24 + slot];
  EXPECT_NEAR(some.by_head[6], by_hand / 4, 1e-12);
}

TEST_F(Attention, RowsCountByWhatTheyGetFromTheTokensBehindThem) {
  KvCache cache = session_->make_cache();
  ASSERT_TRUE(session_->feed(cache, random_tokens(12, 1)).ok());
  const std::vector<TokenId> next = random_tokens(3, 2);
  const std::vector<float> counts = must(row_attention(*session_, cache, next));
  EXPECT_EQ(cache.size(), 12);
  const AttentionWeights weights = must(feed_with_attention(*session_, cache, next, layers_, heads_));
  std::vector<double> by_hand(12);
  for (size_t lane = 0; lane < 8; ++lane)
    for (size_t query = 0; query < 3; ++query)
      for (size_t row = 0; row < 12; ++row) by_hand[row] += weights.weights[(lane * 3 + query) * 15 + row];
  const double mean = std::accumulate(by_hand.begin() + 1, by_hand.end(), 0.0) / 11;
  ASSERT_EQ(counts.size(), 12U);
  for (size_t row = 0; row < 12; ++row) EXPECT_NEAR(counts[row], by_hand[row] / mean, 1e-6);
}

}  // namespace
}  // namespace kvfold::testing
