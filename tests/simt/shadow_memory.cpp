#include "tests/simt/shadow_memory.h"

#include <algorithm>
#include <bit>

namespace simt {

void BlockClocks::begin(uint32_t launch, uint32_t block) {
  launch_ = launch;
  block_ = block;
  barrier_ = 0;
  clocks_.fill(1);
  for (auto& lanes : seen_) lanes.fill(0);
}

void BlockClocks::block_barrier() {
  const uint32_t next = *std::max_element(clocks_.begin(), clocks_.end()) + 1;
  clocks_.fill(next);
  barrier_ = next;
}

void BlockClocks::warp_barrier(int warp, uint32_t lanes) {
  std::array<uint32_t, 32> merged{};
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const auto& seen = seen_[warp * 32 + lane];
    for (int other = 0; other < 32; ++other) merged[other] = std::max(merged[other], seen[other]);
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    merged[lane] = clocks_[warp * 32 + lane]++;
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) seen_[warp * 32 + std::countr_zero(rest)] = merged;
}

bool BlockClocks::ordered(Access earlier, uint32_t thread) const {
  if (earlier.none() || earlier.launch() != launch_) return true;
  if (earlier.block() != block_) return false;
  if (earlier.thread() == thread || earlier.clock() < barrier_) return true;
  const uint32_t other = earlier.thread();
  return other / 32 == thread / 32 && earlier.clock() <= seen_[thread][other % 32];
}

void Watched::touch(size_t from, size_t to) {
  touched_begin = std::min(touched_begin, from);
  touched_end = std::max(touched_end, to);
}

void Watched::clear() {
  if (touched_begin < touched_end)
    std::fill(cells.begin() + touched_begin, cells.begin() + touched_end, Cell{});
  touched_begin = SIZE_MAX;
  touched_end = 0;
}

}  // namespace simt
