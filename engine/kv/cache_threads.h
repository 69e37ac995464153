// Threads for the work of reading and writing cache files: few, short-lived, and none for a small cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>

#include "engine/kv/cache.h"
#include "engine/thread_pool.h"

namespace kvfold {

// Bytes of all rows, as lanes hold them.
inline size_t cache_bytes(const KvCache& cache) {
  size_t rows = 0;
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < cache.shape().lanes(); ++lane) rows += cache.lanes().table(part, lane).rows();
  return rows * cache.pool()->page_bytes() / kPageRows;
}

// Calls work(i, thread) for every i in [0, count); calls with one `thread` number, below kMostCacheThreads,
// run one after another. `bytes` is how much all of it moves. Pages on a device are one thread's.
inline constexpr int kMostCacheThreads = 8;  // memory is the limit
inline void run_on_threads(const PagePool& pages, size_t count, size_t bytes,
                           const std::function<void(size_t i, int thread)>& work) {
  constexpr size_t kWorthAThread = size_t{4} << 20;
  const size_t worth = pages.on_host() ? std::min<size_t>(count, bytes / kWorthAThread) + 1 : 1;
  const int threads = static_cast<int>(
      std::min<size_t>(worth, static_cast<size_t>(std::min(ThreadPool::available(), kMostCacheThreads))));
  ThreadPool pool(threads);
  pool.run(static_cast<int64_t>(count), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) work(static_cast<size_t>(i), thread);
  });
}

}  // namespace kvfold
