// Who touched a byte last, and whether two accesses of it are ordered. Part of shadow.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace simt {

// One access, packed: 12 bits launch, 22 bits block, 10 bits thread, 19 bits the thread's clock, 1 bit
// atomic. 0: none.
class Access {
 public:
  Access() = default;
  Access(uint32_t launch, uint32_t block, uint32_t thread, uint32_t clock, bool atomic)
      : bits_(static_cast<uint64_t>(launch) << 52 | static_cast<uint64_t>(block) << 30 | thread << 20 |
              clock << 1 | (atomic ? 1U : 0U)) {}
  // What copies and fills have written: before every launch that follows.
  static Access by_host() {
    Access access;
    access.bits_ = 1;
    return access;
  }
  bool none() const { return bits_ == 0; }
  uint32_t launch() const { return static_cast<uint32_t>(bits_ >> 52); }
  uint32_t block() const { return static_cast<uint32_t>(bits_ >> 30) & 0x3FFFFFU; }
  uint32_t thread() const { return static_cast<uint32_t>(bits_ >> 20) & 0x3FFU; }
  uint32_t clock() const { return static_cast<uint32_t>(bits_ >> 1) & kMaxClock; }
  bool atomic() const { return (bits_ & 1U) != 0 && launch() != 0; }

  static constexpr uint32_t kMaxLaunch = (1U << 12) - 1;
  static constexpr uint32_t kMaxBlock = (1U << 22) - 1;
  static constexpr uint32_t kMaxClock = (1U << 19) - 1;

 private:
  uint64_t bits_ = 0;
};

// Of one byte. Two readers are kept: a write that is unordered with any reader is unordered with one of two
// unordered readers, except where a third was ordered with both.
struct Cell {
  Access writer;
  std::array<Access, 2> readers;
  std::array<uint32_t, 3> sites;  // of writer and readers, as offsets into the program
};

// The order of the threads of the running block: what each has seen of the others.
class BlockClocks {
 public:
  void begin(uint32_t launch, uint32_t block);
  void block_barrier();
  void warp_barrier(int warp, uint32_t lanes);
  // Whether `earlier` happens before what `thread` does now. True for the thread's own.
  bool ordered(Access earlier, uint32_t thread) const;
  Access access(uint32_t thread, bool atomic) const {
    return {launch_, block_, thread, clocks_[thread], atomic};
  }

 private:
  uint32_t launch_ = 0, block_ = 0;
  uint32_t barrier_ = 0;                               // clocks below this one are before the last barrier
  std::array<uint32_t, 1024> clocks_{};                // of each thread: goes up with each meeting
  std::array<std::array<uint32_t, 32>, 1024> seen_{};  // [thread][lane]: the lane's clock when they met last
};

// A stretch of memory and its cells.
struct Watched {
  const std::byte* begin;
  std::vector<Cell> cells;
  size_t touched_begin = SIZE_MAX, touched_end = 0;

  bool holds(const void* address) const {
    const auto* at = static_cast<const std::byte*>(address);
    return at >= begin && at < begin + cells.size();
  }
  void touch(size_t from, size_t to);
  // Forgets every access.
  void clear();
};

}  // namespace simt
