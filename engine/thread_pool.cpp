#include "engine/thread_pool.h"

#include <sched.h>

#include <algorithm>

namespace kvfold {
namespace {

// How often a waiting thread looks before it goes to sleep: some tens of microseconds, longer than the gap
// between two operations of a layer and short enough that an idle pool costs nothing.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int ThreadPool::available() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::run_piece(int thread) {
  const int64_t all = threads();
  const int64_t begin = count_ * thread / all;
  const int64_t end = count_ * (thread + 1) / all;
  if (begin < end) (*work_)(begin, end, thread);
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t, int64_t, int)>& work) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    work(0, count, 0);
    return;
  }
  work_ = &work;
  count_ = count;
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    // The lock orders this against a worker that is about to sleep.
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  run_piece(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::worker(int thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spins)
      pause();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    }
    ++seen;
    if (stop_) return;
    run_piece(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace kvfold
