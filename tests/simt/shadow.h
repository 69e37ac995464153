// A record of every access that kernels make to memory, for what sanitizers cannot know: that blocks of a
// grid have no order, which bytes of shared memory somebody has written, which memory is the device's.
//
// For kernels compiled with -fsanitize=thread -DSIMT_SHADOW and linked without ThreadSanitizer: the compiler
// calls __tsan_read4() and so on before each access, and these are ours. A program that links
// kvfold_simt_shadow is watched from its first launch on. Reported, with the source lines of both sides:
//   - two accesses, one of them a write, that no barrier, shuffle or vote orders: within a warp, a block, or
//   between blocks
//   - a read of shared memory that no thread of the block has written
//   - a write to a static variable other than the kernel's own __shared__ ones
//   - an access to memory that is neither the device's nor shared nor the thread's own (an index out of
//   bounds, a host
//     pointer, memory that was freed), or to an address that is no multiple of its size
// Two blocks count as unordered whatever atomics and fences they use: a launch is the only order between
// blocks that is known here.
#pragma once

#include <cstdint>

namespace simt {

// Bytes of device memory that threads asked for since the last call, each thread's accesses added up.
struct Traffic {
  uint64_t read_bytes;
  uint64_t written_bytes;
};
Traffic take_traffic();

}  // namespace simt
