// Rows made again over another context, and the weights with which tokens attend to rows.
#include <gtest/gtest.h>

#include <numeric>

#include "engine/attention_weights.h"
#include "engine/kv/ops.h"
#include "engine/random.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

template <class T>
T must(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) std::abort();
  return std::move(*result);
}

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

void expect_same_vectors(const KvCache& a, const KvCache& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(a.rows().positions, b.rows().positions);
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < a.shape().lanes(); ++lane)
      for (int slot = 0; slot < a.size(); ++slot)
        ASSERT_EQ(row_of(a, part, lane, slot), row_of(b, part, lane, slot))
            << "lane " << lane << " slot " << slot;
}

class Recompute : public ::testing::TestWithParam<int> {
 protected:
  Recompute() {
    OpenOptions options;
    options.session.chunk = GetParam();
    session_ = tiny_session(folder_, {}, options);
  }
  KvCache fed(std::initializer_list<std::vector<TokenId>> texts) {
    KvCache cache = session_->make_cache();
    for (const std::vector<TokenId>& text : texts) EXPECT_TRUE(session_->feed(cache, text).ok());
    return cache;
  }
  Selection select(const KvCache& cache, std::string_view text) {
    return must(Selection::parse(text, cache.shape(), cache.size()));
  }
  TemporaryFolder folder_;
  std::unique_ptr<Session> session_;
};

TEST_P(Recompute, OfANaturalCacheIsIdentity) {
  const KvCache cache = fed({random_tokens(70, 1)});
  for (const char* rows :
       {"", "rows=0", "rows=5-40", "rows=3,9-11,69", "layers=1 heads=0 parts=k rows=60-69"})
    expect_same_vectors(must(session_->recompute(cache, select(cache, rows))), cache);
}

// A chunk computed alone and repaired behind a prefix is what it would have been there.
TEST_P(Recompute, RepairsAChunkThatWasComputedAlone) {
  const std::vector<TokenId> a = random_tokens(37, 1);
  const std::vector<TokenId> b = random_tokens(20, 2);
  const KvCache alone = fed({b});
  const KvSlice slice = must(extract(alone, Selection::all(alone.shape(), alone.size())));
  const KvCache joined = must(insert(fed({a}), slice, 37, {}));
  const KvCache text = fed({a, b});
  EXPECT_NE(row_of(joined, Part::kValue, 2, 45), row_of(text, Part::kValue, 2, 45));
  const KvCache repaired = must(session_->recompute(joined, select(joined, "rows=37-56")));
  expect_same_vectors(repaired, text);
  EXPECT_EQ(operation_names(repaired.rows().origins[40].operations), "shift+recompute");
  // Only what is selected: one head of one layer.
  const KvCache part = must(session_->recompute(joined, select(joined, "rows=37-56 layers=1 heads=1")));
  EXPECT_EQ(row_of(part, Part::kValue, 3, 45), row_of(text, Part::kValue, 3, 45));
  EXPECT_EQ(row_of(part, Part::kValue, 2, 45), row_of(joined, Part::kValue, 2, 45));
}

TEST_P(Recompute, RefusesLanesThatLackTheRow) {
  const KvCache cache = fed({random_tokens(8, 1)});
  const KvCache ragged = must(erase(cache, select(cache, "layers=1 heads=0 rows=3")));
  const size_t held = session_->pool()->pages_held();
  EXPECT_NE(
      session_->recompute(ragged, select(ragged, "rows=2-4")).status().message().find("layer 1 head 0 lacks"),
      std::string::npos);
  // Rows that every lane holds can be made again though others are missing.
  EXPECT_TRUE(session_->recompute(ragged, select(ragged, "rows=5")).ok());
  EXPECT_EQ(session_->pool()->pages_held(), held);
}

INSTANTIATE_TEST_SUITE_P(Chunks, Recompute, ::testing::Values(3, 512));

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
        const float* w = weights.of(layer, head, query);
        EXPECT_NEAR(std::accumulate(w, w + weights.rows, 0.0), 1, 1e-6);
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

}  // namespace
}  // namespace kvfold::testing
