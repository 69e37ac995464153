// What operations on a cache of 4,096 rows cost, at SmolLM2-135M's shape in f16: 94 MB of rows.
//
// The pool's own counters stand beside the times: rows_copied and new_pages are 0 where rows only move.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <numeric>
#include <optional>

#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "engine/random.h"

namespace kvfold {
namespace {

constexpr CacheShape kShape{30, 3, 64};
constexpr int kRows = 4096;

template <class T>
T must(Result<T> result) {
  if (result.ok()) return std::move(*result);
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::abort();
}

KvCache make_cache(const std::shared_ptr<PagePool>& pool, int rows) {
  KvCache cache(pool, kShape);
  std::vector<TokenId> tokens(static_cast<size_t>(rows), 1);
  if (!cache.grow(tokens).ok()) std::abort();
  Random random(1);
  std::vector<float> row(kShape.head_dim);
  for (float& x : row) x = static_cast<float>(random.gaussian());
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < kShape.lanes(); ++lane)
      for (int slot = 0; slot < rows; ++slot) {
        row[slot % kShape.head_dim] += 0.001F;
        const PageTable::RowPlace place = cache.row_place(part, lane, slot);
        kv_store_row(pool->type(), part, kShape.head_dim, pool->write(place.page), place.row, row.data());
      }
  return cache;
}

const KvCache& whole() {
  static const KvCache cache =
      make_cache(must(PagePool::create(CacheType::kF16, kShape.head_dim, size_t{1} << 30)), kRows);
  return cache;
}

// Counts what the pool did from here to the end of the benchmark.
class Counters {
 public:
  explicit Counters(benchmark::State& state)
      : state_(state), rows_(whole().pool()->rows_copied()), pages_(whole().pool()->pages_held()) {}
  ~Counters() {
    state_.counters["rows_copied"] = static_cast<double>(whole().pool()->rows_copied() - rows_);
    state_.counters["new_pages"] = static_cast<double>(whole().pool()->peak_pages() - pages_);
  }
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

 private:
  benchmark::State& state_;
  uint64_t rows_;
  size_t pages_;
};

void fork(benchmark::State& state) {
  const Counters counters(state);
  for (auto _ : state) {
    KvCache copy = whole().fork();
    benchmark::DoNotOptimize(copy);
  }
}
BENCHMARK(fork)->Unit(benchmark::kMicrosecond);

// All rows into an empty cache, at other positions.
void insert_whole(benchmark::State& state) {
  const Counters counters(state);
  const KvSlice slice = must(extract(whole(), Selection::all(kShape, kRows)));
  const KvCache empty(whole().pool(), kShape);
  for (auto _ : state) {
    KvCache joined = must(insert(empty, slice, 0, {InsertPositions::Kind::kFrom, 1000}));
    benchmark::DoNotOptimize(joined);
  }
}
BENCHMARK(insert_whole)->Unit(benchmark::kMicrosecond);

// All rows between the rows of the cache itself.
void insert_middle(benchmark::State& state) {
  const Counters counters(state);
  const KvSlice slice = must(extract(whole(), Selection::all(kShape, kRows)));
  for (auto _ : state) {
    KvCache joined = must(insert(whole(), slice, kRows / 2, {}));
    benchmark::DoNotOptimize(joined);
  }
}
BENCHMARK(insert_middle)->Unit(benchmark::kMicrosecond);

void shift_all(benchmark::State& state) {
  const Counters counters(state);
  std::vector<int> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  for (auto _ : state) {
    KvCache moved = must(shift(whole(), rows, 1000));
    benchmark::DoNotOptimize(moved);
  }
}
BENCHMARK(shift_all)->Unit(benchmark::kMicrosecond);

// In the folder that TMPDIR names; removed afterwards.
struct File {
  std::string path =
      (std::filesystem::temp_directory_path() / ("kvfold-bench-" + std::to_string(getpid()))).string();
  CacheModelInfo model{"0123456789abcdef", "llama", "bench", 10000, RopePairing::kHalfSplit, kShape.head_dim};
  ~File() { std::remove(path.c_str()); }
};

void save(benchmark::State& state) {
  const File file;
  for (auto _ : state) {
    if (!save_cache(whole(), file.model, file.path).ok()) std::abort();
  }
}
BENCHMARK(save)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(3);

// Into a pool that was never written, as a program that starts loads it. The file is in the page cache.
void load(benchmark::State& state) {
  const File file;
  if (!save_cache(whole(), file.model, file.path).ok()) std::abort();
  for (auto _ : state) {
    state.PauseTiming();
    std::optional<KvCache> loaded;
    const auto pool = must(PagePool::create(CacheType::kF16, kShape.head_dim, size_t{200} << 20));
    state.ResumeTiming();
    loaded = must(load_cache(file.path, file.model, kShape, pool));
    state.PauseTiming();
    loaded.reset();
    state.ResumeTiming();
  }
}
BENCHMARK(load)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);

// Into pages that were used before.
void load_again(benchmark::State& state) {
  const File file;
  if (!save_cache(whole(), file.model, file.path).ok()) std::abort();
  const auto pool = must(PagePool::create(CacheType::kF16, kShape.head_dim, size_t{200} << 20));
  for (auto _ : state) {
    KvCache loaded = must(load_cache(file.path, file.model, kShape, pool));
    benchmark::DoNotOptimize(loaded);
  }
}
BENCHMARK(load_again)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);

}  // namespace
}  // namespace kvfold
