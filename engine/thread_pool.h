// A fixed set of threads that run one function over a range, together with the caller.
//
// The range is cut into pieces that threads claim one by one, and a call waits for pieces, never for threads:
// a thread that the system has put aside for another process costs its share of the work, not the whole of
// it.
#pragma once

#include <atomic>
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

  void worker(int thread);
  void work_on_job(int thread);
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> ticket_{0};
  const std::function<void(int64_t, int64_t, int)>* work_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> unfinished_{0};  // pieces of the job
  std::atomic<bool> stop_{false};
  std::mutex mutex_;  // of going to sleep, and of failure_
  std::exception_ptr failure_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
};

}  // namespace kvfold
