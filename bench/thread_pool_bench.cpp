// What it costs that threads meet: a call of ThreadPool::run with nothing to do, as a layer makes seven of
// them.
#include <benchmark/benchmark.h>

#include "engine/thread_pool.h"

namespace kvfold {
namespace {

// A piece for each thread, and as many as run() makes at most.
void meet(benchmark::State& state) {
  const auto threads = static_cast<int>(state.range(0));
  ThreadPool pool(threads);
  for (auto _ : state)
    pool.run(state.range(1), [](int64_t begin, int64_t, int) { benchmark::DoNotOptimize(begin); });
}
BENCHMARK(meet)->Args({1, 64})->Args({2, 2})->Args({2, 64})->UseRealTime();

}  // namespace
}  // namespace kvfold
