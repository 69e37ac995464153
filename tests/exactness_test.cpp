// What must be equal bit for bit, whatever the threads, the batch, the chunks or the kernels; and what
// injection at the start must be: the same computation as feeding the texts in turn.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "engine/random.h"
#include "kernels/cpu/cpu.h"
#include "tests/must.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

using Logits = std::vector<std::vector<float>>;

std::vector<TokenId> random_tokens(int count, uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (TokenId& id : ids) id = static_cast<TokenId>(random.below(256));
  return ids;
}

Logits feed_all(Session& session, KvCache& cache, std::span<const TokenId> ids) {
  Logits out;
  const Feed feed{&cache, ids, Wanted::kAll};
  const Status status = session.feed(std::span(&feed, 1), [&](int, int, std::span<const float> logits) {
    out.emplace_back(logits.begin(), logits.end());
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

void feed(Session& session, KvCache& cache, std::span<const TokenId> ids) { feed_all(session, cache, ids); }

void expect_same_cache(const KvCache& a, const KvCache& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(a.rows().tokens, b.rows().tokens);
  EXPECT_EQ(a.rows().positions, b.rows().positions);
  EXPECT_EQ(a.next_position(), b.next_position());
  std::vector<float> x(a.shape().head_dim);
  std::vector<float> y(x.size());
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < a.shape().lanes(); ++lane)
      for (int slot = 0; slot < a.size(); ++slot) {
        const PageTable& ta = a.lanes().table(part, lane);
        const PageTable& tb = b.lanes().table(part, lane);
        ASSERT_EQ(ta.holds(slot), tb.holds(slot)) << "lane " << lane << " slot " << slot;
        if (!ta.holds(slot)) continue;
        ta.load(part, slot, x.data());
        tb.load(part, slot, y.data());
        ASSERT_EQ(x, y) << "lane " << lane << " slot " << slot;
      }
}

KvSlice all_of(const KvCache& cache) {
  return must(extract(cache, Selection::all(cache.shape(), cache.size())));
}

struct Variant {
  const char* name;
  TinyModelOptions model;
  Precision precision;
  CacheType cache;
};

class Exactness : public ::testing::TestWithParam<Variant> {
 protected:
  std::unique_ptr<Session> open(int threads, int chunk) {
    OpenOptions options;
    options.cpu = {threads, GetParam().precision};
    options.session.cache_type = GetParam().cache;
    options.session.chunk = chunk;
    options.session.cache_bytes = size_t{64} << 20;
    return tiny_session(folder_, GetParam().model, options);
  }
  TemporaryFolder folder_;
};

TEST_P(Exactness, ThreadsAndChunksDoNotShow) {
  const std::vector<TokenId> ids = random_tokens(330, 7);  // past one attention block of 256 rows
  Logits reference;
  for (const int threads : {1, 2, 3})
    for (const int chunk : {1, 7, 64, 512}) {
      if (chunk == 1 && threads != 2) continue;
      const std::unique_ptr<Session> session = open(threads, chunk);
      KvCache cache = session->make_cache();
      const Logits logits = feed_all(*session, cache, ids);
      if (reference.empty()) reference = logits;
      ASSERT_EQ(reference, logits) << threads << " threads, chunk " << chunk;
    }
}

TEST_P(Exactness, KernelTablesAgree) {
  const std::vector<TokenId> ids = random_tokens(300, 11);
  Logits reference;
  for (const CpuKernels* table : cpu_kernel_tables()) {
    if (!table->supported()) continue;
    setenv("KVFOLD_CPU", table->name, 1);
    const std::unique_ptr<Session> session = open(2, 128);
    unsetenv("KVFOLD_CPU");
    KvCache cache = session->make_cache();
    const Logits logits = feed_all(*session, cache, ids);
    if (reference.empty()) reference = logits;
    ASSERT_EQ(reference, logits) << table->name;
  }
}

TEST_P(Exactness, BatchDoesNotShow) {
  const std::unique_ptr<Session> session = open(2, 50);
  const std::vector<int> lengths = {40, 1, 93, 17};
  std::vector<std::vector<TokenId>> texts;
  Logits alone;
  for (const int length : lengths) {
    texts.push_back(random_tokens(length, 100 + static_cast<uint64_t>(length)));
    KvCache cache = session->make_cache();
    for (std::vector<float>& row : feed_all(*session, cache, texts.back())) alone.push_back(std::move(row));
  }
  std::vector<KvCache> caches(lengths.size(), session->make_cache());
  std::vector<Feed> feeds;
  for (size_t i = 0; i < texts.size(); ++i) feeds.push_back({&caches[i], texts[i], Wanted::kAll});
  std::vector<Logits> together(texts.size());
  ASSERT_TRUE(session
                  ->feed(feeds,
                         [&](int feed, int, std::span<const float> logits) {
                           together[static_cast<size_t>(feed)].emplace_back(logits.begin(), logits.end());
                         })
                  .ok());
  Logits joined;
  for (Logits& logits : together)
    for (std::vector<float>& row : logits) joined.push_back(std::move(row));
  EXPECT_EQ(alone, joined);
}

TEST_P(Exactness, StartInjectionIsFeedingInTurn) {
  const std::unique_ptr<Session> session = open(2, 32);
  for (const int source_length : {1, 12, 32, 45}) {
    const std::vector<TokenId> source = random_tokens(source_length, 3);
    const std::vector<TokenId> target = random_tokens(41, 4);
    KvCache text = session->make_cache();
    feed(*session, text, source);
    const KvSlice slice = all_of(text);
    const Logits expected = feed_all(*session, text, target);
    KvCache injected = must(insert(session->make_cache(), slice, 0, {}));
    EXPECT_EQ(expected, feed_all(*session, injected, target)) << source_length << " rows";
    expect_same_cache(text, injected);
  }
}

TEST_P(Exactness, SavedCacheContinuesAsIfNothingHadBeen) {
  const std::unique_ptr<Session> session = open(1, 64);
  const std::vector<TokenId> ids = random_tokens(75, 5);
  const std::vector<TokenId> rest = random_tokens(9, 6);
  KvCache cache = session->make_cache();
  feed(*session, cache, ids);
  const CacheModelInfo info = cache_model_info(session->model().source());
  const std::string path = folder_.file("cache.safetensors");
  ASSERT_TRUE(save_cache(cache, info, path).ok());
  // Another session is as another process: nothing but the file passes between them.
  const std::unique_ptr<Session> other = open(2, 5);
  KvCache loaded = must(load_cache(path, info, other->model().cache_shape(), other->pool()));
  expect_same_cache(cache, loaded);
  const Logits expected = feed_all(*session, cache, rest);
  EXPECT_EQ(expected, feed_all(*other, loaded, rest));
}

TEST_P(Exactness, ForkAndItsOriginalGoTheirOwnWays) {
  const std::unique_ptr<Session> session = open(1, 64);
  const std::vector<TokenId> ids = random_tokens(50, 8);
  const std::vector<TokenId> left = random_tokens(20, 9);
  const std::vector<TokenId> right = random_tokens(20, 10);
  KvCache plain_left = session->make_cache();
  feed(*session, plain_left, ids);
  const Logits expected_left = feed_all(*session, plain_left, left);
  KvCache plain_right = session->make_cache();
  feed(*session, plain_right, ids);
  const Logits expected_right = feed_all(*session, plain_right, right);

  KvCache cache = session->make_cache();
  feed(*session, cache, ids);
  KvCache fork = cache.fork();
  EXPECT_EQ(expected_left, feed_all(*session, fork, left));
  EXPECT_EQ(expected_right, feed_all(*session, cache, right));
}

// Sequences of a batch that share whole blocks of pages (two by two here, and one moved by 32 positions,
// whose pages are the same and whose keys are not) look at them together, and none differs from when it is
// alone.
TEST_P(Exactness, SharedPrefixesDoNotShow) {
  const std::unique_ptr<Session> session = open(2, 600);
  KvCache base = session->make_cache();
  feed(*session, base, random_tokens(540, 30));
  KvCache other = must(truncate(base, 300));
  feed(*session, other, random_tokens(240, 31));
  const std::vector<int> every = Selection::all(base.shape(), base.size()).rows;
  KvCache moved = must(shift(base, std::vector<int>(every.begin(), every.begin() + 100), -64));
  std::vector<KvCache> caches = {base.fork(), other.fork(), moved.fork(), base.fork(), other.fork()};
  std::vector<std::vector<TokenId>> tokens;
  std::vector<Logits> alone;
  for (size_t i = 0; i < caches.size(); ++i) {
    tokens.push_back(random_tokens(1 + static_cast<int>(i % 3), 40 + i));
    KvCache fork = caches[i].fork();
    alone.push_back(feed_all(*session, fork, tokens[i]));
  }
  std::vector<Feed> feeds;
  for (size_t i = 0; i < caches.size(); ++i) feeds.push_back({&caches[i], tokens[i], Wanted::kAll});
  std::vector<Logits> together(caches.size());
  ASSERT_TRUE(session
                  ->feed(feeds,
                         [&](int i, int, std::span<const float> logits) {
                           together[static_cast<size_t>(i)].emplace_back(logits.begin(), logits.end());
                         })
                  .ok());
  for (size_t i = 0; i < caches.size(); ++i) EXPECT_EQ(alone[i], together[i]) << i;
}

TEST_P(Exactness, IdentitiesOfOperations) {
  const std::unique_ptr<Session> session = open(1, 64);
  KvCache cache = session->make_cache();
  feed(*session, cache, random_tokens(70, 12));
  const KvSlice slice = all_of(cache);
  expect_same_cache(cache, must(insert(session->make_cache(), slice, 0, {})));
  expect_same_cache(cache, must(to_cache(slice)));
  const std::vector<int> every = Selection::all(cache.shape(), cache.size()).rows;
  expect_same_cache(cache, must(overwrite(cache, slice, every)));
  expect_same_cache(cache, must(shift(must(shift(cache, every, 1000)), every, -1000)));
  const Selection none = must(Selection::parse("rows=", cache.shape(), cache.size()));
  expect_same_cache(cache, must(insert(cache, must(extract(cache, none)), 33, {})));
  const Selection no_layers = must(Selection::parse("layers=", cache.shape(), cache.size()));
  expect_same_cache(cache, must(insert(cache, must(extract(cache, no_layers)), 33, {})));
  expect_same_cache(cache, must(erase(cache, none)));
  expect_same_cache(cache, must(keep(cache, Selection::all(cache.shape(), cache.size()))));
  expect_same_cache(cache, must(truncate(cache, cache.size())));
}

// Cutting a cache in two and putting it together again packs its rows differently into pages, and nothing
// shows.
TEST_P(Exactness, PackingDoesNotShow) {
  const std::unique_ptr<Session> session = open(1, 64);
  KvCache cache = session->make_cache();
  feed(*session, cache, random_tokens(90, 13));
  KvCache head = must(truncate(cache, 37));
  Selection tail = Selection::all(cache.shape(), cache.size());
  tail.rows.erase(tail.rows.begin(), tail.rows.begin() + 37);
  KvCache joined = must(insert(head, must(extract(cache, tail)), 37, {}));
  expect_same_cache(cache, joined);
  const std::vector<TokenId> rest = random_tokens(10, 14);
  const Logits expected = feed_all(*session, cache, rest);
  EXPECT_EQ(expected, feed_all(*session, joined, rest));
}

TEST_P(Exactness, ShiftedContextMeansTheSame) {
  const std::unique_ptr<Session> session = open(1, 64);
  const std::vector<TokenId> rest = random_tokens(10, 16);
  KvCache cache = session->make_cache();
  feed(*session, cache, random_tokens(60, 15));
  const std::vector<int> every = Selection::all(cache.shape(), cache.size()).rows;
  KvCache plain = cache.fork();
  const Logits expected = feed_all(*session, plain, rest);
  // Multiples of 32 change no angle that is computed, so not a bit; others round differently.
  KvCache by_64 = must(shift(cache, every, 64));
  EXPECT_EQ(expected, feed_all(*session, by_64, rest));
  for (const int delta : {1000, -12, 7}) {
    KvCache moved = must(shift(cache, every, delta));
    const Logits logits = feed_all(*session, moved, rest);
    double worst = 0;
    for (size_t i = 0; i < logits.size(); ++i)
      for (size_t j = 0; j < logits[i].size(); ++j)
        worst = std::max(worst, std::abs(static_cast<double>(logits[i][j]) - expected[i][j]));
    EXPECT_LT(worst, 1e-3)
        << delta;  // observed: up to 1.2e-4, f32 pages and activations; 1.6e-5 with f16 pages
  }
}

TEST_P(Exactness, ExhaustedPoolLeavesTheCacheAsItWas) {
  OpenOptions options;
  options.cpu = {1, GetParam().precision};
  options.session.cache_type = GetParam().cache;
  const size_t page = kv_page_bytes(GetParam().cache, GetParam().model.head_dim);
  const int lanes = GetParam().model.layers * GetParam().model.kv_heads;
  options.session.cache_bytes = page * 2 * static_cast<size_t>(lanes) * 2;  // 64 rows
  const std::unique_ptr<Session> session = tiny_session(folder_, GetParam().model, options);
  KvCache cache = session->make_cache();
  feed(*session, cache, random_tokens(60, 17));
  KvCache copy = session->make_cache();
  const std::vector<TokenId> many = random_tokens(5, 18);
  const Feed too_many{&cache, many, Wanted::kNone};
  const Status status = session->feed(std::span(&too_many, 1), {});
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("cache pool exhausted"), std::string::npos) << status.message();
  EXPECT_EQ(cache.size(), 60);
  EXPECT_EQ(cache.next_position(), 60);
  feed(*session, cache, random_tokens(4, 19));
  EXPECT_EQ(cache.size(), 64);
}

TinyModelOptions qwen() {
  TinyModelOptions options;
  options.architecture = "qwen2";
  options.heads = 6;
  options.kv_heads = 1;
  options.tied = false;
  options.type = WeightType::kQ5_0;
  return options;
}
TinyModelOptions k_quants() {
  TinyModelOptions options;
  options.heads = 8;
  options.kv_heads = 8;
  options.head_dim = 32;
  options.ffn_dim = 256;
  options.layers = 1;
  options.type = WeightType::kQ6_K;
  return options;
}
TinyModelOptions odd_heads() {
  TinyModelOptions options;
  options.heads = 2;
  options.kv_heads = 1;
  options.head_dim = 48;
  options.type = WeightType::kF16;
  return options;
}

INSTANTIATE_TEST_SUITE_P(
    Models, Exactness,
    ::testing::Values(Variant{"llama_q4_0_f16", {}, Precision::kInt8, CacheType::kF16},
                      Variant{"llama_exact_f32", {}, Precision::kExact, CacheType::kF32},
                      Variant{"qwen2_q5_0_q8", qwen(), Precision::kInt8, CacheType::kQ8},
                      Variant{"llama_q6_k_f16", k_quants(), Precision::kInt8, CacheType::kF16},
                      Variant{"llama_f16_head_dim_48", odd_heads(), Precision::kInt8, CacheType::kF16}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace kvfold::testing
