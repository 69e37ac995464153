#include "engine/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <exception>
#include <utility>

namespace kvfold {
namespace {

// How often a waiting thread looks before it goes to sleep: about a tenth of a millisecond, longer than the
// gap between two operations of a layer and short enough that an idle pool costs nothing.
constexpr int kSpins = 4000;
// Pieces for each thread: what one that comes late or is interrupted leaves to the others.
constexpr int kPiecesPerThread = 4;
// A worker is late when the caller waits longer than it worked itself, and than this: pieces are of about one
// length, so it would have waited for a quarter of that.
constexpr std::chrono::microseconds kLate{100};
// A job that has run alone for so long is shared all the same: a late piece matters less there.
constexpr std::chrono::milliseconds kLong{2};
constexpr std::chrono::milliseconds kLeastPenalty{2};
constexpr std::chrono::milliseconds kMostPenalty{200};

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
  workers_.reserve(static_cast<size_t>(threads));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
  } catch (const std::exception&) {
    // No more threads, or no memory for them: those that are there do the work.
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  {
    const std::lock_guard lock(mutex_);
    ticket_.fetch_add(uint64_t{1} << (2 * kPieceBits));
  }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

// Claims pieces of the current job until none is left.
void ThreadPool::work_on_job(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const auto next = static_cast<int64_t>(ticket & kPieceMask);
    const auto pieces = static_cast<int64_t>(ticket >> kPieceBits & kPieceMask);
    if (next == pieces) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
      continue;
    // The job cannot end before this piece does, so what describes it stays.
    try {
      (*work_)(begin_ + count_ * next / pieces, begin_ + count_ * (next + 1) / pieces, thread);
    } catch (...) {  // memory that ran out: the caller's to hear of, when all threads are done
      const std::lock_guard lock(mutex_);
      if (failure_ == nullptr) failure_ = std::current_exception();
    }
    unfinished_.fetch_sub(1, std::memory_order_release);
    ++ticket;
  }
}

// Works on [0, count) until it is done or has become long; returns where it stopped.
int64_t ThreadPool::run_alone(int64_t count, const std::function<void(int64_t, int64_t, int)>& work,
                              Clock::time_point start) const {
  const int64_t pieces = std::min(count, static_cast<int64_t>(threads()) * kPiecesPerThread);
  for (int64_t i = 0; i < pieces; ++i) {
    if (i > 0 && Clock::now() - start > kLong) return count * i / pieces;
    work(count * i / pieces, count * (i + 1) / pieces, 0);
  }
  return count;
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t, int64_t, int)>& work) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    work(0, count, 0);
    return;
  }
  Clock::time_point start = Clock::now();
  begin_ = 0;
  if (start < alone_until_) {
    begin_ = run_alone(count, work, start);
    if (begin_ == count) return;
    count -= begin_;
    start = Clock::now();
  }
  const int64_t pieces =
      std::min({count, static_cast<int64_t>(threads()) * kPiecesPerThread, static_cast<int64_t>(kPieceMask)});
  work_ = &work;
  count_ = count;
  unfinished_.store(pieces, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> (2 * kPieceBits)) + 1;
  // Sequentially consistent with a worker that counts itself among the sleepers and then looks again.
  ticket_.store(job << (2 * kPieceBits) | static_cast<uint64_t>(pieces) << kPieceBits);
  if (sleepers_.load() > 0) {
    // A worker between its look and its sleep holds the lock.
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work_on_job(0);
  const Clock::time_point done = Clock::now();
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  const Clock::time_point end = Clock::now();
  note_wait(done - start, end - done, end);
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::note_wait(Clock::duration worked, Clock::duration waited, Clock::time_point now) {
  if (waited > kLate && waited > worked) {
    penalty_ = std::clamp<Clock::duration>(2 * penalty_, kLeastPenalty, kMostPenalty);
    alone_until_ = now + penalty_;
  } else if (now - alone_until_ > kMostPenalty) {
    penalty_ = {};  // all went well for long enough
  }
}

void ThreadPool::worker(int thread) {
  uint64_t seen = 0;
  const auto job = [this] { return ticket_.load() >> (2 * kPieceBits); };
  for (;;) {
    for (int spins = 0; spins < kSpins && job() == seen; ++spins) pause();
    if (job() == seen) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return job() != seen; });
      sleepers_.fetch_sub(1);
    }
    seen = job();
    if (stop_.load()) return;
    work_on_job(thread);
  }
}

}  // namespace kvfold
