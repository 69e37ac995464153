// Rows made again over another context.
#include <gtest/gtest.h>

#include "engine/kv/ops.h"
#include "engine/random.h"
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

// A cache file may say that its rows are of tokens that no vocabulary has.
TEST_P(Recompute, RefusesTokensOutsideTheVocabulary) {
  const KvCache cache = fed({random_tokens(8, 1)});
  const int size = session_->model().config().vocab_size;
  for (const TokenId id : {-1, size, INT32_MAX, INT32_MIN}) {
    auto rows = std::make_shared<Rows>(cache.rows());
    rows->tokens[4] = id;
    const KvCache foreign(cache.lanes(), rows, cache.next_position());
    const auto refused = session_->recompute(foreign, select(foreign, "rows=2-5"));
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.status().message().find("outside the vocabulary"), std::string::npos);
    EXPECT_TRUE(session_->recompute(foreign, select(foreign, "rows=5-7")).ok());
  }
}

INSTANTIATE_TEST_SUITE_P(Chunks, Recompute, ::testing::Values(3, 512));

}  // namespace
}  // namespace kvfold::testing
