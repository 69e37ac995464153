// A fixed set of threads that run one function over a range, together with the caller.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvfold {

class ThreadPool {
 public:
  // `threads` counts the caller; 1 runs everything in place. REQUIRES: threads >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Calls work(begin, end, thread) for consecutive pieces of [0, count), at most one a thread, and returns
  // when all are done. How the range is cut must not matter to the result.
  void run(int64_t count, const std::function<void(int64_t begin, int64_t end, int thread)>& work);

  // CPUs that this process may use, at least 1.
  static int available();

 private:
  void worker(int thread);
  void run_piece(int thread);
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int64_t, int64_t, int)>* work_ = nullptr;
  int64_t count_ = 0;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  bool stop_ = false;
};

}  // namespace kvfold
