// Every index of every job is worked on once, whoever is late.
#include "engine/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace kvfold::testing {
namespace {

// Runs a job of `count` indices; `busy` is called for each piece with its thread's number.
template <class Busy>
void expect_each_once(ThreadPool& pool, int64_t count, Busy busy) {
  std::vector<std::atomic<int>> times(static_cast<size_t>(count));
  std::vector<std::atomic<int>> inside(static_cast<size_t>(pool.threads()));
  pool.run(count, [&](int64_t begin, int64_t end, int thread) {
    EXPECT_EQ(inside[thread].fetch_add(1), 0) << "two pieces at a time as thread " << thread;
    busy(thread);
    for (int64_t i = begin; i < end; ++i) ++times[i];
    inside[thread].fetch_sub(1);
  });
  for (int64_t i = 0; i < count; ++i) ASSERT_EQ(times[i], 1) << "index " << i << " of " << count;
}

TEST(ThreadPool, WorksOnEachIndexOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t count = 0; count < 70; ++count) expect_each_once(pool, count, [](int) {});
  }
}

// Late workers make the caller work alone for a while, in short jobs and in jobs that turn out long.
TEST(ThreadPool, WorksOnEachIndexOnceWhenWorkersAreLate) {
  using std::chrono::milliseconds;
  ThreadPool pool(2);
  for (int turn = 0; turn < 8; ++turn) {
    // The caller waits until the worker holds a piece; not for ever, as it may work alone.
    std::atomic<bool> came = false;
    expect_each_once(pool, 16, [&](int thread) {
      if (thread == 0) {
        for (int i = 0; i < 20 && !came; ++i) std::this_thread::sleep_for(std::chrono::microseconds(100));
      } else {
        came = true;
        std::this_thread::sleep_for(milliseconds(2));
      }
    });
    for (int64_t count = 1; count < 40; ++count) expect_each_once(pool, count, [](int) {});
    expect_each_once(pool, 16, [](int) { std::this_thread::sleep_for(milliseconds(1)); });
  }
}

}  // namespace
}  // namespace kvfold::testing
