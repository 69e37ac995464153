// Reading through a frozen receiver and going back to its cache rows: Qwen 0.5B, 8 texts of 31 scored tokens
// behind 64 rows. items_per_second counts scored tokens.
#include <benchmark/benchmark.h>

#include "engine/random.h"
#include "engine/train/receiver.h"
#include "loaders/model_loader.h"
#include "loaders/open.h"

namespace kvfold {
namespace {

void read(benchmark::State& state, Receiver::Weights weights, bool back) {
  const Result<std::string> path = resolve_model("qwen2.5-coder-0.5b-instruct");
  if (!path.ok()) return state.SkipWithError(path.status().message().c_str());
  const Result<ModelSource> source = load_model_source(*path);
  if (!source.ok()) return state.SkipWithError(source.status().message().c_str());
  constexpr int kTexts = 8, kContext = 64, kTokens = 32;
  const ModelConfig& c = source->config;
  ThreadPool pool(ThreadPool::available());
  Gemm gemm(pool, *select_cpu_kernels());
  const auto receiver = Receiver::create(*source, gemm, weights);
  std::vector<float> rows(size_t{kContext} * 2 * c.layers * c.kv_heads * c.head_dim);
  Random random(1);
  for (float& x : rows) x = static_cast<float>(random.gaussian());
  std::vector<TokenId> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back(static_cast<TokenId>(random.below(c.vocab_size)));
  std::vector<std::vector<float>> gradients(kTexts, std::vector<float>(back ? rows.size() : 0));
  std::vector<Reading> batch;
  for (std::vector<float>& gradient : gradients)
    batch.push_back({rows.data(), kContext, tokens, back ? gradient.data() : nullptr});
  for (auto _ : state)
    if (!receiver->read(batch).ok()) return state.SkipWithError("a reading failed");
  state.SetItemsProcessed(state.iterations() * kTexts * (kTokens - 1));
}

BENCHMARK_CAPTURE(read, forward_decoded_once, Receiver::Weights::kOnce, false)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(read, and_back_decoded_once, Receiver::Weights::kOnce, true)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(read, and_back_decoded_as_met, Receiver::Weights::kAsMet, true)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace kvfold
