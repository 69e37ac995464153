// What the CUDA backend takes of a device is what was planned, on the device that was asked for; models that
// do not fit it are refused at load. On the emulated device, which tells what it holds.
#include <gtest/gtest.h>

#include "engine/gpu_memory.h"
#include "engine/kv/flat_rows.h"
#include "engine/kv/ops.h"
#include "engine/sampler.h"
#include "kernels/cuda/kernels.h"
#include "loaders/model_loader.h"
#include "tests/cuda/sessions.h"

namespace kvfold::testing {
namespace {

class CudaMemory : public ::testing::Test {
 protected:
  void SetUp() override { simt::reset_device(); }
  void TearDown() override { simt::reset_device(); }

  std::string write(const TinyModelOptions& model) {
    return folder_.write("tiny.gguf", tiny_model(model).build());
  }
  std::string refusal(const std::string& path, const OpenOptions& options) {
    const Result<std::unique_ptr<Session>> refused = open_session(path, options);
    EXPECT_FALSE(refused.ok());
    return refused.ok() ? "" : refused.status().message();
  }
  // Logits of a prompt and of one more token.
  static std::vector<float> run(Session& session) {
    KvCache cache = session.make_cache();
    std::vector<float> out = must(session.feed(cache, tokens(5)));
    const std::vector<float> next = must(session.feed(cache, std::vector<TokenId>{7}));
    out.insert(out.end(), next.begin(), next.end());
    return out;
  }

  TemporaryFolder folder_;
};

// On a device of which nothing is taken yet.
GpuPlan plan_for(const std::string& path, const OpenOptions& options, std::string& line,
                 size_t memory = simt::kDeviceMemory) {
  const ModelSource source = must(load_model_source(path));
  const Gpu gpu{must(make_backend(kDevice, {}))->name(), memory, memory};
  const MemoryWanted wanted{options.session.cache_type, options.session.cache_bytes, options.session.chunk};
  const GpuPlan plan = must(plan_gpu_memory(source, wanted, options.prefill, gpu));
  line = describe(plan, gpu);
  return plan;
}

// That there are two allocations shows that nothing was left out of the plan; that what is left of the first
// is what chunks leave, that nothing is in it too much.
void expect_planned(const GpuPlan& plan, Session& session) {
  EXPECT_EQ(simt::device_use().bytes, plan.arena() + plan.pages);
  EXPECT_EQ(simt::device_use().allocations, 2);
  const size_t left = plan.arena() - plan.weights - plan.activations - plan.scratch - plan.cublas;
  std::vector<std::shared_ptr<float>> rest;
  if (left > 256) rest.push_back(must(session.model().backend().allocate((left - 256) / sizeof(float))));
  EXPECT_EQ(simt::device_use().allocations, 2);
  rest.push_back(must(session.model().backend().allocate(1)));
  EXPECT_EQ(simt::device_use().allocations, 3);
}

// Norms of queries and keys, biases, an output of its own, K-quants; passes longer and shorter than cuBLAS is
// for. In use, the tables of a batch and of RoPE alone come to it, and prefill by cuBLAS finds its room.
TEST_F(CudaMemory, WhatIsAllocatedWasPlanned) {
  std::vector<TinyModelOptions> models(4);
  models[0].tied = false;
  models[1].architecture = "qwen2";
  models[2].architecture = "qwen3";
  models[3] = {
      .architecture = "qwen3", .heads = 8, .head_dim = 32, .ffn_dim = 512, .type = WeightType::kQ6_K};
  if (kSanitized) models.resize(1);
  for (const TinyModelOptions& model : models)
    for (const Prefill prefill : {Prefill::kTiles, Prefill::kCublas, Prefill::kAuto})
      for (const int chunk : {7, 40}) {
        SCOPED_TRACE(model.architecture + ", chunk " + std::to_string(chunk));
        simt::reset_device();
        OpenOptions options = on(kDevice, CacheType::kF16, chunk);
        options.prefill = prefill;
        const std::string path = write(model);
        std::string expected;
        const GpuPlan plan = plan_for(path, options, expected);
        std::string line;
        options.notice = [&](const std::string& text) { line = text; };
        const std::unique_ptr<Session> session = must(open_session(path, options));
        EXPECT_EQ(line, expected);
        EXPECT_EQ(plan.cublas > 0, prefill != Prefill::kTiles && chunk > cuda::kMostVecRows);
        expect_planned(plan, *session);
        const int before = simt::device_use().allocations;
        KvCache cache = session->make_cache();
        const std::vector<TokenId> text = tokens(40);
        const Feed all{&cache, text, Wanted::kAll};
        ASSERT_TRUE(session->feed(std::span(&all, 1), cuda::kMostLikeliest, [](auto...) {}).ok());
        must(session->feed(cache, tokens(1)));
        EXPECT_EQ(simt::device_use().allocations, before + 2);
        EXPECT_EQ(simt::device_use().blas_workspace, plan.cublas > 0 ? kBlasWorkspaceBytes : 0);
      }
}

// 256 MiB are kept free, cuBLAS takes 4 and more.
TEST_F(CudaMemory, RefusesWhatDoesNotFit) {
  const std::string path = write({});
  OpenOptions options = on(kDevice);
  std::string line;
  const GpuPlan tiles = plan_for(path, options, line);
  const size_t enough = tiles.arena() + (size_t{256} << 20) + kGpuChunkBytes;
  simt::set_device_memory(enough);
  {
    // Half of what is left is for pages, less than were asked for.
    const GpuPlan tight = plan_for(path, options, line, enough);
    const std::unique_ptr<Session> session = must(open_session(path, options));
    EXPECT_EQ(tight.pages, kGpuChunkBytes / 2);
    EXPECT_EQ(simt::device_use().bytes, tight.arena() + tight.pages);
  }
  options.prefill = Prefill::kCublas;
  EXPECT_NE(refusal(path, options).find("does not fit the GPU: "), std::string::npos);
  options.prefill = Prefill::kTiles;
  simt::set_device_memory(enough - 1);
  EXPECT_NE(refusal(path, options).find("does not fit the GPU: "), std::string::npos);
}

// Wide heads go fewer to a block, one alone where that takes more than 48 KiB, which has to be asked for;
// what does not fit 64 KiB is refused.
TEST_F(CudaMemory, WideHeadsFitABlockOrAreRefused) {
  const TinyModelOptions four = {.layers = 1, .heads = 4, .kv_heads = 1, .head_dim = 352, .ffn_dim = 32};
  const TinyModelOptions one = {.layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 416, .ffn_dim = 32};
  for (const auto& [model, type] :
       {std::pair{four, CacheType::kF16}, std::pair{one, CacheType::kF32}, std::pair{one, CacheType::kQ8}}) {
    const std::string path = write(model);
    const std::vector<float> expected = run(*must(open_session(path, on("cpu", type))));
    EXPECT_EQ(run(*must(open_session(path, on(kDevice, type)))), expected) << model.head_dim;
  }
  const std::string path = write({.layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 1024, .ffn_dim = 32});
  const std::string gpu = must(make_backend(kDevice, {}))->name();
  EXPECT_EQ(refusal(path, on(kDevice, CacheType::kF16)),
            path + ": head_dim 1024: at most 925 on " + gpu + ", whose blocks share 64 KiB");
  EXPECT_EQ(refusal(path, on(kDevice, CacheType::kF32)),
            path + ": head_dim 1024: at most 476 on " + gpu + ", whose blocks share 64 KiB");
  EXPECT_TRUE(no_reports());
}

// A file of such a model would be large.
TEST_F(CudaMemory, WideRowsAreRefused) {
  ModelSource source;
  source.path = "wide.gguf";
  source.config.head_dim = 128;
  source.config.model_dim = 16369;
  const std::shared_ptr<Backend> backend = must(make_backend(kDevice, {}));
  EXPECT_EQ(
      backend->plan(source, {CacheType::kF16, 1, 1}).status().message(),
      "wide.gguf: model_dim 16369: at most 16368 on " + backend->name() + ", whose blocks share 64 KiB");
}

TEST_F(CudaMemory, TheDeviceIsTheOneThatWasAskedFor) {
  simt::set_device_count(3);
  simt::set_capability(0, 61);
  EXPECT_TRUE(must(make_backend(kDevice, {}))->name().starts_with("cuda:1 (")) << "the first that will do";
  const auto refused = [](const std::string& name, int device) {
    BackendOptions options;
    options.device = device;
    const Result<std::shared_ptr<Backend>> backend = make_backend(name, options);
    return backend.ok() ? "" : backend.status().message();
  };
  EXPECT_NE(refused(kDevice, 0).find("compute capability 6.1; 7.5 or later is needed"), std::string::npos);
  EXPECT_EQ(refused(kDevice, 3), "device 3: there is no such GPU here; the last one is 2");
  EXPECT_EQ(refused("cpu", 0), "device 0: the backend 'cpu' is on no GPU");
  EXPECT_EQ(refused("auto", 1).substr(0, 31), "backend 'cuda': not in this pro");
  simt::set_capability(1, 60);
  simt::set_capability(2, 60);
  EXPECT_NE(refused(kDevice, -1).find("compute capability 6.1"), std::string::npos);
}

// Two sessions in turn, and their caches after them.
TEST_F(CudaMemory, DevicesKeepTheirWorkApart) {
  simt::set_device_count(3);
  const std::string path = write({});
  const std::vector<float> expected = run(*must(open_session(path, on("cpu"))));
  OpenOptions options = on(kDevice);
  options.device = 1;
  std::unique_ptr<Session> first = must(open_session(path, options));
  options.device = 2;
  std::unique_ptr<Session> second = must(open_session(path, options));
  EXPECT_EQ(simt::bytes_on(0), 0U);
  EXPECT_EQ(simt::bytes_on(1), simt::bytes_on(2));
  EXPECT_EQ(run(*first), expected);
  EXPECT_EQ(run(*second), expected);
  KvCache cache = first->make_cache();
  KvCache other = second->make_cache();
  for (int i = 0; i < 4; ++i) {  // also as recorded steps
    const std::vector<TokenId> token = {static_cast<TokenId>(i)};
    EXPECT_EQ(must(first->feed(cache, token)), must(second->feed(other, token)));
  }
  first.reset();
  second.reset();
  const Selection all = Selection::all(cache.shape(), cache.size());
  const size_t elsewhere = simt::bytes_on(2);
  const KvCache scaled = must(scale(cache, 0.5, all));
  EXPECT_EQ(simt::bytes_on(2), elsewhere);
  EXPECT_EQ(all_rows(scaled), all_rows(must(scale(other, 0.5, all))));
  EXPECT_EQ(simt::bytes_on(0), 0U);
  EXPECT_TRUE(no_reports());
}

}  // namespace
}  // namespace kvfold::testing
