// Runs CUDA kernels on the host, exactly enough to believe them: every CUDA thread is a fiber with a stack of
// its own that runs until it waits for others (barrier, shuffle, vote), and the waiting is checked.
//
// What is checked here, in every build: which lanes a mask names and whether they come, and to the same line;
// that all threads of a block reach the same barrier; that no thread waits for ever. Shared memory is all
// ones (NaN, -1) when a block begins. Where a sanitizer is built in: ThreadSanitizer sees each CUDA thread as
// a thread of its own that only barriers, shuffles and votes order; AddressSanitizer sees shared arrays at
// their exact sizes. shadow.h has what sanitizers do not know: blocks of a grid, shared memory that nobody
// has written, memory that is not the device's.
//
// One launch at a time; blocks run one after the other. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/simt/geometry.h"

namespace simt {

// In which order blocks, warps, and the threads of a warp are picked. A correct kernel gives the same bits in
// all.
enum class Order { kForward, kReverse, kShuffled };

// The default is what the environment variable SIMT_ORDER says (forward, reverse, shuffled or shuffled:SEED),
// or forward.
void set_order(Order order, uint64_t seed = 1);

struct Launch {
  const char* kernel;  // its name, for reports
  dim3 grid, block;
  size_t shared_bytes;         // dynamic shared memory
  std::function<void()> body;  // calls the kernel; runs once in every thread
  // The kernel, whose __shared__ variables are then known; null: it has none.
  const void* function = nullptr;
};

// Runs a whole grid. False when a fault was reported; the rest of the grid is then not run.
// REQUIRES: 1 to 1024 threads a block, at least one block (the device API checks what users give it).
bool run_grid(const Launch& launch);

// What was reported since the last call, one line each: the fault, kernel, block, thread, file and line.
// Lines go to stderr as well.
std::vector<std::string> take_reports();

// Reports a fault of the thread that runs now, or of the launch when none does; the grid ends as soon as that
// thread waits.
void report(const std::string& fault);
// The same for the running thread, at a place in its source. Only a launch's first fault is reported: others
// may follow from it.
void report_in_thread(const std::string& fault, const std::string& place);
bool has_faulted();

// Told of what orders memory; shadow.cpp is one. Threads are numbered within their block, lanes within their
// warp.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void launch_begins(const Launch& launch) = 0;
  virtual void block_begins(uint32_t block, std::byte* dynamic_shared, size_t dynamic_shared_bytes) = 0;
  virtual void block_barrier() = 0;
  virtual void warp_barrier(int warp, uint32_t lanes) = 0;
  virtual void thread_resumes(int thread) = 0;
  virtual void launch_ends() = 0;
  // The same memory order for an atomic operation of the running thread. `writes`: also stores.
  virtual void atomic(const void* address, size_t bytes, bool writes) = 0;
};
void set_observer(Observer* observer);

struct MemoryRange {
  std::byte* begin;
  size_t bytes;
};
// The stack of a thread of the block.
MemoryRange thread_stack(int thread);

}  // namespace simt
