// What a kernel calls: thread indices, shared memory, and the operations in which threads wait for each
// other. The CUDA names (include/cuda_runtime.h) are thin names for these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/simt/geometry.h"

namespace simt {

// A place in a kernel's source. As a default argument, Site::current() is where the caller is called.
struct Site {
  const char* file;
  unsigned line;
  static constexpr Site current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

// Of the thread that runs now.
inline uint3 thread_index{};
inline uint3 block_index{};
inline dim3 block_size;
inline dim3 grid_size;

// Whether that thread is within its kernel: not yet when it copies the kernel's arguments. For shadow.cpp.
inline bool in_kernel = false;
void enter_kernel();
void leave_kernel();

int lane_of_current_thread();
// The launch's dynamic shared memory, at its exact size, aligned to 16 bytes.
std::byte* dynamic_shared_memory();

// An operation in which lanes of a warp meet.
enum class Meeting : uint8_t { kSync, kShuffle, kBallot, kMatch };
const char* meeting_name(Meeting meeting);

// Waits until all lanes of `mask` have come to the same operation at the same site. Returns: kShuffle, what
// lane `source_lane` gave; kBallot, the lanes of the mask that gave a value other than 0; kMatch, the lanes
// that gave the same value as this one; kSync, 0.
uint64_t meet(Meeting meeting, uint32_t mask, uint64_t value, int source_lane, const Site& site);

// Waits for all threads of the block at the same site. Returns how many gave a true predicate.
int block_barrier(bool predicate, const Site& site);

// The shuffles' value types travel as 64 bits.
template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// An atomic operation is about to be done by the running thread (see Observer::atomic), at an address that
// must be a multiple of `bytes`.
void atomic_access(const void* address, size_t bytes, bool writes, const Site& site);
// Reports an address that is no multiple of `bytes`, on which a GPU faults.
void check_alignment(const void* address, size_t bytes, const Site& site);
// Reports what __trap() or a failed device assert ends.
[[noreturn]] void trap(const Site& site);

}  // namespace simt
