// The whole CUDA backend, on the executor or a GPU: sessions on it give the bits of sessions on the CPU, and
// errors of the device, which only an emulated one has at will, come out as errors.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/cuda_rope.h"
#include "engine/kv/flat_rows.h"
#include "engine/kv/ops.h"
#include "engine/kv/projector.h"
#include "loaders/model_loader.h"
#include "tests/cuda/sessions.h"
#include "tests/gaussian_tensor.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

// All logits of some prompts fed as a batch, then of one more token each, fed three times over forks.
std::vector<float> run(Session& session) {
  std::vector<float> out;
  const auto sink = [&](int, int, std::span<const float> logits) {
    out.insert(out.end(), logits.begin(), logits.end());
  };
  KvCache a = session.make_cache();
  KvCache b = session.make_cache();
  const std::vector<TokenId> first = tokens(35);
  const std::vector<TokenId> second = tokens(7, 5);
  const std::array feeds = {Feed{&a, first, Wanted::kAll}, Feed{&b, second, Wanted::kLast}};
  EXPECT_TRUE(session.feed(feeds, sink).ok());
  // Moved rows: a slice in the middle with a gap, and a lane that lacks some.
  const KvSlice slice = must(extract(a, must(Selection::parse("rows=2-20", a.shape(), a.size()))));
  KvCache c = must(insert(b, slice, 3, must(InsertPositions::parse("gap:5"))));
  c = must(erase(c, must(Selection::parse("layers=1 heads=0 rows=4-6", c.shape(), c.size()))));
  c = must(scale(c, 0.5, must(Selection::parse("layers=0 parts=k rows=1-3", c.shape(), c.size()))));
  for (int round = 0; round < 4; ++round) {
    const std::vector<TokenId> next = {static_cast<TokenId>(60 + round)};
    const std::array steps = {Feed{&a, next, Wanted::kLast}, Feed{&c, next, Wanted::kLast}};
    EXPECT_TRUE(session.feed(steps, sink).ok());
  }
  KvCache fork = c.fork();
  EXPECT_TRUE(session.feed(std::array{Feed{&fork, second, Wanted::kLast}}, sink).ok());
  return out;
}

struct Case {
  TinyModelOptions model;
  CacheType type = CacheType::kF16;
  Precision precision = Precision::kInt8;
};

TEST(CudaBackend, SessionsGiveTheBitsOfTheCpu) {
  std::vector<Case> cases(9);
  cases[0].model.type = WeightType::kQ4_1;
  cases[1].model.type = WeightType::kQ5_0;
  cases[1].type = CacheType::kQ8;
  cases[2].model = {
      .architecture = "qwen2", .heads = 7, .kv_heads = 1, .head_dim = 32, .type = WeightType::kQ8_0};
  cases[2].type = CacheType::kF32;
  cases[3].model = {.heads = 8, .kv_heads = 2, .head_dim = 32, .ffn_dim = 512, .type = WeightType::kQ4_K};
  cases[4].model = {
      .heads = 8, .kv_heads = 2, .head_dim = 32, .ffn_dim = 512, .type = WeightType::kQ6_K, .tied = false};
  cases[5].model.type = WeightType::kF16;
  cases[6].model.type = WeightType::kF32;
  cases[7].model.type = WeightType::kQ4_0;
  cases[7].precision = Precision::kExact;
  cases[8].model.architecture = "qwen3";
  if (kSanitized) cases = {cases[1], cases[2]};
  for (const Case& c : cases) {
    TemporaryFolder folder;
    OpenOptions cpu = on("cpu", c.type);
    OpenOptions gpu = on(kDevice, c.type, 16);
    cpu.cpu.precision = gpu.cpu.precision = c.precision;
    const std::vector<float> expected = run(*tiny_session(folder, c.model, cpu));
    const std::unique_ptr<Session> session = tiny_session(folder, c.model, gpu);
    const std::vector<float> found = run(*session);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_EQ(found[i], expected[i])
          << "model of type " << static_cast<int>(c.model.type) << ", logit " << i;
    if (const auto use = device_use()) {
      EXPECT_GE(use->graphs, 1) << "steps are recorded";
    }
  }
  EXPECT_TRUE(no_reports());
}

TEST(CudaBackend, BatchesAndChunksDoNotShowInResults) {
  TemporaryFolder folder;
  const std::unique_ptr<Session> session = tiny_session(folder, {}, on(kDevice, CacheType::kF16, 24));
  const std::vector<TokenId> text = tokens(kSanitized ? 20 : 40);
  KvCache alone = session->make_cache();
  const std::vector<float> expected = must(session->feed(alone, text));
  std::vector<KvCache> caches;
  for (int i = 0; i < (kSanitized ? 4 : 16); ++i) caches.push_back(session->make_cache());
  // One token at a time, many sequences side by side.
  std::vector<float> found;
  for (const TokenId id : text) {
    std::vector<Feed> feeds;
    for (KvCache& cache : caches) feeds.push_back({&cache, std::span(&id, 1), Wanted::kLast});
    ASSERT_TRUE(session
                    ->feed(feeds,
                           [&](int feed, int, std::span<const float> logits) {
                             if (feed == 3) found.assign(logits.begin(), logits.end());
                           })
                    .ok());
  }
  EXPECT_EQ(found, expected);
}

// Rows of another model's cache, projected on the host, into pages of the device; and back to the host.
TEST(CudaBackend, CachesCrossBetweenModels) {
  TemporaryFolder folder;
  TemporaryFolder other;
  const std::vector<TokenId> text = tokens(40);
  const std::vector<TokenId> next = tokens(3, 5);
  ThreadPool threads(1);
  std::vector<std::vector<float>> found;
  for (const char* name : {"cpu", kDevice}) {
    const std::unique_ptr<Session> source = tiny_session(folder, {}, on(name));
    const std::unique_ptr<Session> target = tiny_session(other, {.architecture = "qwen2"}, on(name));
    const CacheShape from = source->model().cache_shape();
    const CacheShape to = target->model().cache_shape();
    ProjectorData data{"ridge", {"", "", from}, {"", "", to}, {}, {}};
    data.tensors = {{"ridge.mean_in", gaussian_tensor({row_width(from)}, 1)},
                    {"ridge.scale_in", gaussian_tensor({row_width(from)}, 2)},
                    {"ridge.mean_out", gaussian_tensor({row_width(to)}, 3)},
                    {"ridge.scale_out", gaussian_tensor({row_width(to)}, 4)},
                    {"ridge.weight", gaussian_tensor({row_width(to), row_width(from)}, 5)}};
    const std::unique_ptr<Projector> projector = must(make_projector(std::move(data)));
    KvCache own = source->make_cache();
    must(source->feed(own, text));
    AlignedTokens aligned{text, text, {}};
    for (int i = 0; i < own.size(); ++i) aligned.source_row.push_back(i);
    KvCache crossed = must(project(*projector, own, aligned, target->pool(), "other", threads));
    found.push_back(all_rows(crossed));
    const std::vector<float> logits = must(target->feed(crossed, next));
    found.back().insert(found.back().end(), logits.begin(), logits.end());
  }
  EXPECT_EQ(found[1], found[0]);
  EXPECT_TRUE(no_reports());
}

// Greedy and sampled: the CPU's tokens, and of a row of logits no more crosses than the sampler looks at.
TEST(CudaBackend, TokensAreChosenOnTheDevice) {
  struct Way {
    SamplerOptions sampler;
    size_t bytes;  // that a token sends to the host
  };
  TemporaryFolder folder;
  const std::unique_ptr<Session> cpu = tiny_session(folder, {}, on("cpu"));
  const std::unique_ptr<Session> gpu = tiny_session(folder, {}, on(kDevice));
  const auto vocabulary = static_cast<size_t>(gpu->model().config().vocab_size);
  for (const Way& way : {Way{{}, 8}, Way{{0.9F, 20, 0.95F, 3}, 160}, Way{{1.5F, 100, 1, 3}, 4 * vocabulary},
                         Way{{1, 0, 1, 3}, 4 * vocabulary}}) {
    std::vector<std::vector<TokenId>> texts;
    for (const auto* session : {&cpu, &gpu}) {
      Sampler sampler(way.sampler);
      KvCache cache = (*session)->make_cache();
      std::vector<TokenId> text = {must((*session)->feed(cache, tokens(9), sampler))};
      for (int i = 0; i < (kSanitized ? 3 : 12); ++i) {
        const auto before = device_use();
        text.push_back(must((*session)->feed(cache, std::span(&text.back(), 1), sampler)));
        if (const auto use = device_use(); use && session == &gpu) {
          EXPECT_EQ(use->bytes_to_host - before->bytes_to_host, way.bytes);
        }
      }
      texts.push_back(text);
    }
    EXPECT_EQ(texts[1], texts[0]) << "temperature " << way.sampler.temperature;
  }
  EXPECT_TRUE(no_reports());
}

// Several sequences at once, all tokens of a prompt, and more candidates than the vocabulary has.
TEST(CudaBackend, LikeliestOfABatchAreTheCpus) {
  TemporaryFolder folder;
  const std::vector<TokenId> first = tokens(kSanitized ? 5 : 19);
  const std::vector<TokenId> second = tokens(3, 5);
  for (const int k : {1, 7, 64, 1000}) {
    std::vector<std::vector<float>> found;
    for (const char* name : {"cpu", kDevice}) {
      const std::unique_ptr<Session> session = tiny_session(folder, {}, on(name));
      KvCache a = session->make_cache();
      KvCache b = session->make_cache();
      std::vector<float>& out = found.emplace_back();
      const std::array feeds = {Feed{&a, first, Wanted::kAll}, Feed{&b, second, Wanted::kLast}};
      ASSERT_TRUE(session
                      ->feed(feeds, k,
                             [&](int feed, int token, std::span<const TokenLogit> likeliest) {
                               out.insert(out.end(), {static_cast<float>(feed), static_cast<float>(token)});
                               for (const TokenLogit& t : likeliest)
                                 out.insert(out.end(), {static_cast<float>(t.id), t.logit});
                             })
                      .ok());
    }
    EXPECT_EQ(found[1], found[0]) << k;
  }
}

std::vector<float> prefill_logits(const TinyModelOptions& model, OpenOptions options, Prefill prefill) {
  TemporaryFolder folder;
  options.prefill = prefill;
  const std::unique_ptr<Session> session = tiny_session(folder, model, options);
  KvCache cache = session->make_cache();
  return must(session->feed(cache, tokens(60)));
}

TEST(CudaBackend, CublasIsNear) {
  const std::vector<float> expected = prefill_logits({}, on("cpu"), Prefill::kTiles);
  const std::vector<float> found = prefill_logits({}, on(kDevice), Prefill::kCublas);
  double error = 0;
  double squares = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += std::pow(found[i] - expected[i], 2);
    squares += std::pow(expected[i], 2);
  }
  RecordProperty("relative_error", std::to_string(std::sqrt(error / squares)));
  // f32 activations against int8 ones. Observed: 0.039.
  EXPECT_LT(std::sqrt(error / squares), 0.1);
  EXPECT_GT(error, 0) << "it is another arithmetic";
}

#if !defined(KVFOLD_ON_GPU)
// What Nsight shows. A step that is played is one launch, of what was seen when it was recorded.
TEST(CudaBackend, RangesNamePhaseLayerAndOperation) {
  TemporaryFolder folder;
  const std::unique_ptr<Session> session = tiny_session(folder, {}, on(kDevice));
  KvCache cache = session->make_cache();
  simt::take_ranges();
  must(session->feed(cache, tokens(5)));
  const std::vector<std::string> prefill = simt::take_ranges();
  for (const char* range : {"prefill", "prefill/embed", "prefill/layer 0/linear", "prefill/layer 1/store",
                            "prefill/layer 1/attention", "linear"})
    EXPECT_EQ(std::count(prefill.begin(), prefill.end(), range) > 0, true) << range;
  const auto layers = [](const std::vector<std::string>& ranges) {
    return std::count_if(ranges.begin(), ranges.end(), [](const std::string& range) {
      return range == "decode/layer 0" || range == "decode/layer 1";
    });
  };
  for (const int expected : {2, 2, 0}) {
    must(session->feed(cache, tokens(1)));
    const std::vector<std::string> decode = simt::take_ranges();
    EXPECT_EQ(std::count(decode.begin(), decode.end(), "decode"), 1);
    EXPECT_EQ(layers(decode), expected);
  }
}

// Against int8 tiles and, where weights or activations are f32, against f32 ones. Of two times each the
// second counts.
TEST(CudaBackend, TheProbeTakesTheFasterWay) {
  for (const auto& [type, precision] :
       {std::pair{WeightType::kQ4_0, Precision::kInt8}, std::pair{WeightType::kQ4_0, Precision::kExact},
        std::pair{WeightType::kF16, Precision::kInt8}}) {
    OpenOptions options = on(kDevice);
    options.cpu.precision = precision;
    const TinyModelOptions model = {.type = type};
    const std::vector<float> tiles = prefill_logits(model, options, Prefill::kTiles);
    const std::vector<float> cublas = prefill_logits(model, options, Prefill::kCublas);
    ASSERT_NE(tiles, cublas);
    simt::set_elapsed({1, 3, 9, 2});
    EXPECT_EQ(prefill_logits(model, options, Prefill::kAuto), cublas);
    simt::set_elapsed({9, 2, 1, 3});
    EXPECT_EQ(prefill_logits(model, options, Prefill::kAuto), tiles);
  }
}
#endif

// Tables of another model that lie where the first one's lay.
TEST(CudaBackend, TablesOfRopeAreToldByWhatTheyHold) {
  std::vector<double> frequencies = {1, 0.25};
  const std::vector<float> angles(2 * kPageRows, 1);
  RopeView view{angles.data(), angles.data(), angles.data(), angles.data(), frequencies.data(), 8, 2, false};
  CudaRope rope;
  ASSERT_TRUE(rope.send(view, nullptr).ok());
  EXPECT_FALSE(rope.differs(view));
  frequencies[1] = 0.5;
  EXPECT_TRUE(rope.differs(view));
  ASSERT_TRUE(rope.send(view, nullptr).ok());
  EXPECT_FALSE(rope.differs(view));
  view.interleaved = true;
  EXPECT_TRUE(rope.differs(view));
  view.interleaved = false;
  view.distances = 9;
  EXPECT_TRUE(rope.differs(view));
  view.distances = 8;
  view.pairs = 1;
  EXPECT_TRUE(rope.differs(view));
}

// A model where another one was, over the same backend: its tables may come to lie where the other's lay.
TEST(CudaBackend, EachModelTurnsByItsOwnAngles) {
  TemporaryFolder folder;
  std::vector<std::vector<float>> found;
  for (const char* name : {"cpu", kDevice}) {
    const std::shared_ptr<Backend> backend = must(make_backend(name, {}));
    found.emplace_back();
    for (const float base : {10000.0F, 100.0F}) {
      const std::string path = folder.write("tiny.gguf", tiny_model({.rope_base = base}).build());
      const std::unique_ptr<Session> session = must(
          Session::create(must(Model::create(must(load_model_source(path)), backend)), on(name).session));
      KvCache cache = session->make_cache();
      const std::vector<float> logits = must(session->feed(cache, tokens(20)));
      found.back().insert(found.back().end(), logits.begin(), logits.end());
    }
  }
  EXPECT_EQ(found[1], found[0]);
}

// The last token sees 16,385 rows, which share pages: partial results of all tokens would be more than there
// is memory for. No pass is larger, so that nothing but a gap lies behind the last slice's results.
TEST(CudaBackend, AttentionGoesInSlices) {
  TemporaryFolder folder;
  constexpr int kShort = 60;
  constexpr int kCount = 5;
  const TinyModelOptions model = {.layers = 1, .heads = 16, .kv_heads = 1, .head_dim = 32};
  std::vector<std::vector<float>> found;
  for (const char* name : {"cpu", kDevice}) {
    const std::unique_ptr<Session> session =
        tiny_session(folder, model, on(name, CacheType::kF16, kShort * kCount + 1));
    KvCache deep = session->make_cache();
    must(session->feed(deep, tokens(64)));
    while (deep.size() < 16384)
      deep =
          must(insert(deep, must(extract(deep, Selection::all(deep.shape(), deep.size()))), deep.size(), {}));
    std::vector<KvCache> shallow(kCount, session->make_cache());
    const std::vector<TokenId> many = tokens(kShort, 5);
    const std::vector<TokenId> one = {7};
    std::vector<Feed> feeds;
    for (KvCache& cache : shallow) feeds.push_back({&cache, many, Wanted::kLast});
    feeds.push_back({&deep, one, Wanted::kAll});
    std::vector<float>& out = found.emplace_back();
    const auto before = device_use();
    const auto sink = [&](int, int, std::span<const float> logits) {
      out.insert(out.end(), logits.begin(), logits.end());
    };
    ASSERT_TRUE(session->feed(feeds, sink).ok());
    if (const auto use = device_use(); use && std::string(name) == kDevice) {
      EXPECT_EQ(use->allocations, before->allocations) << "scratch memory suffices";
    }
  }
  EXPECT_EQ(found[1], found[0]);
  EXPECT_TRUE(no_reports());
}

// More than a grid is high. Short sequences, as each token costs what it sees.
TEST(CudaBackend, MoreTokensThanAGridIsHigh) {
  TemporaryFolder folder;
  const TinyModelOptions model = {.layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 32, .ffn_dim = 32};
  constexpr int kEach = 64;
  constexpr int kCount = 1025;
  if (!full()) GTEST_SKIP() << "a hundred million threads: with KVFOLD_CUDA_FULL=1";
  std::vector<std::vector<float>> found;
  for (const char* name : {"cpu", kDevice}) {
    OpenOptions options = on(name, CacheType::kF16, kEach * kCount);
    options.session.cache_bytes = size_t{16} << 20;
    const std::unique_ptr<Session> session = tiny_session(folder, model, options);
    std::vector<std::vector<TokenId>> texts;
    std::vector<KvCache> caches;
    std::vector<Feed> feeds;
    for (int i = 0; i < kCount; ++i) {
      texts.push_back(tokens(kEach, i));
      caches.push_back(session->make_cache());
    }
    for (int i = 0; i < kCount; ++i)
      feeds.push_back(
          {&caches[i], texts[i], i % 512 == 0 || i + 1 == kCount ? Wanted::kLast : Wanted::kNone});
    std::vector<float>& out = found.emplace_back();
    const auto sink = [&](int, int, std::span<const float> logits) {
      out.insert(out.end(), logits.begin(), logits.end());
    };
    ASSERT_TRUE(session->feed(feeds, sink).ok());
  }
  EXPECT_EQ(found[1], found[0]);
  EXPECT_TRUE(no_reports());
}

// A cache is a value: it is read, changed and dropped when its session is gone.
TEST(CudaBackend, CachesOutliveTheirSession) {
  TemporaryFolder folder;
  std::vector<std::vector<float>> found;
  for (const char* name : {"cpu", kDevice}) {
    std::unique_ptr<Session> session = tiny_session(folder, {}, on(name));
    KvCache cache = session->make_cache();
    ASSERT_TRUE(session->feed(cache, tokens(9)).ok());
    session.reset();
    const KvCache scaled = must(scale(cache, 0.5, Selection::all(cache.shape(), cache.size())));
    found.push_back(all_rows(scaled));
  }
  EXPECT_EQ(found[1], found[0]);
  EXPECT_TRUE(no_reports());
}

#if !defined(KVFOLD_ON_GPU)

TEST(CudaBackend, FailuresOfTheDeviceAreErrors) {
  for (const simt::Call call : {simt::Call::kMalloc, simt::Call::kMemcpy, simt::Call::kLaunch,
                                simt::Call::kGraph, simt::Call::kSynchronize, simt::Call::kMallocHost})
    for (const int nth : kSanitized ? std::vector<int>{5} : std::vector<int>{1, 5, 30}) {
      simt::reset_device();
      TemporaryFolder folder;
      const std::string path = folder.write("tiny.gguf", tiny_model({}).build());
      bool failed = false;
      {
        Result<std::unique_ptr<Session>> session = open_session(path, on(kDevice));
        ASSERT_TRUE(session.ok());
        KvCache cache = (*session)->make_cache();
        simt::fail_call(call, nth);
        for (int i = 0; i < 4 && !failed; ++i)
          failed = !(*session)->feed(cache, std::vector<TokenId>{static_cast<TokenId>(i)}).ok();
      }
      // Not every call comes thirty times.
      if (nth == 1 || call == simt::Call::kLaunch) {
        EXPECT_TRUE(failed) << "call " << static_cast<int>(call) << ", " << nth;
      }
    }
  simt::reset_device();
}

// The first launches of a token's pass and its last ones, which make the logits, one at a time. A copy of
// what a refused one should have made succeeds.
TEST(CudaBackend, ARefusedLaunchIsAnError) {
  TemporaryFolder folder;
  const std::string path = folder.write("tiny.gguf", tiny_model({}).build());
  const std::vector<TokenId> token = {7};
  Sampler sampler({});
  simt::reset_device();
  uint64_t launches = 0;
  for (const bool greedy : {false, true})
    for (uint64_t nth = 0; nth <= launches; ++nth) {
      if (nth > 2 && nth + 5 < launches) continue;
      simt::reset_device();
      {
        const std::unique_ptr<Session> session = must(open_session(path, on(kDevice)));
        KvCache cache = session->make_cache();
        if (nth > 0) simt::fail_call(simt::Call::kRefusedLaunch, static_cast<int>(nth));
        const bool fed =
            greedy ? session->feed(cache, token, sampler).ok() : session->feed(cache, token).ok();
        EXPECT_EQ(fed, nth == 0) << "launch " << nth << (greedy ? ", greedy" : "");
      }
      if (nth == 0) launches = simt::device_use().kernels;
    }
  EXPECT_GT(launches, 10U);
  simt::reset_device();
}

// Also where nothing is brought over that would show it.
TEST(CudaBackend, AFaultOfAFeedWithoutLogitsIsItsError) {
  TemporaryFolder folder;
  simt::reset_device();
  {
    const std::unique_ptr<Session> session = tiny_session(folder, {}, on(kDevice));
    KvCache cache = session->make_cache();
    const std::vector<TokenId> text = tokens(5);
    must(session->feed(cache, text));  // scratch memory has its size: to free memory is to wait
    simt::fail_call(simt::Call::kLaunch, 3);
    const Feed feed{&cache, text, Wanted::kNone};
    EXPECT_FALSE(session->feed(std::span(&feed, 1), [](int, int, std::span<const float>) {}).ok());
  }
  simt::reset_device();
}

TEST(CudaBackend, WithoutAGpuTheErrorSaysSo) {
  simt::set_device_count(0);
  const Result<std::shared_ptr<Backend>> backend = make_backend(kDevice, {});
  simt::reset_device();
  ASSERT_FALSE(backend.ok());
  simt::set_driver_version(0);
  EXPECT_EQ(make_backend(kDevice, {}).status().message(), "cuda: no NVIDIA driver found");
  simt::set_driver_version(12040);
  EXPECT_EQ(make_backend(kDevice, {}).status().message(),
            "cuda: the NVIDIA driver knows CUDA 12.4; 13.0 is needed");
  simt::reset_device();
  const Result<std::shared_ptr<Backend>> unknown = make_backend("vulkan", {});
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.status().message().find("cpu, simt"), std::string::npos) << unknown.status().message();
}

#endif

}  // namespace
}  // namespace kvfold::testing
