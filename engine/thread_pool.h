// A fixed set of threads that run one function over a range, together with the caller.
//
// The range is cut into pieces that threads claim one by one, and a call waits for pieces, never for threads:
// a thread that the system has put aside for another process costs the piece that it holds, not the whole of
// the work. Where that happens the caller works alone for a while, longer each time.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvfold {

class ThreadPool {
 public:
  // `threads` counts the caller; 1 runs everything in place. Where the system gives fewer, there are fewer.
  // REQUIRES: threads >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Calls work(begin, end, thread) for pieces that cover [0, count), and returns when all are done; of the
  // calls with one `thread` number only one runs at a time. How the range is cut must not matter to the
  // result. What a call throws is thrown here, when all are done.
  void run(int64_t count, const std::function<void(int64_t begin, int64_t end, int thread)>& work);

  // CPUs that this process may use, at least 1.
  static int available();

 private:
  // What there is to claim: the job's number in the upper half, then how many pieces it has, then the next
  // one. In one word, so that a thread that comes late cannot claim from a job that it has not seen.
  static constexpr int kPieceBits = 16;
  static constexpr uint64_t kPieceMask = (uint64_t{1} << kPieceBits) - 1;

  using Clock = std::chrono::steady_clock;

  void worker(int thread);
  int64_t run_alone(int64_t count, const std::function<void(int64_t, int64_t, int)>& work,
                    Clock::time_point start) const;
  void note_wait(Clock::duration worked, Clock::duration waited, Clock::time_point now);
  void work_on_job(int thread);
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> ticket_{0};
  const std::function<void(int64_t, int64_t, int)>* work_ = nullptr;
  int64_t begin_ = 0, count_ = 0;       // of the job
  std::atomic<int64_t> unfinished_{0};  // pieces of the job
  std::atomic<bool> stop_{false};
  std::mutex mutex_;  // of going to sleep, and of failure_
  std::exception_ptr failure_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  // The caller's alone.
  Clock::time_point alone_until_{};
  Clock::duration penalty_{};  // how long it works alone the next time a worker is late
};

}  // namespace kvfold
