// A record of every access that kernels make to memory, for what sanitizers cannot know: that blocks of a
// grid have no order, which bytes of shared memory somebody has written, which memory is the device's.
//
// For kernels compiled with -fsanitize=thread -DSIMT_SHADOW and linked without ThreadSanitizer: the compiler
// calls __tsan_read4() and so on before each access, and these are ours. A program that links
// kvfold_simt_shadow is watched from its first launch on. Reported, with the source lines of both sides:
//   - two accesses, one of them a write, that no barrier, shuffle or vote orders: within a warp, within a
//     block, or between blocks
//   - a read of shared memory that no thread of the block has written
//   - a write to a static variable other than the kernel's own __shared__ ones
//   - an access to memory that is neither the device's nor shared nor the thread's own (an index out of
//     bounds, a host pointer, memory that was freed), or to an address that is no multiple of its size
// Two blocks count as unordered whatever atomics and fences they use: a launch is the only order between
// blocks that is known here.
#include <unistd.h>

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/simt/device_code.h"
#include "tests/simt/emulated_device.h"
#include "tests/simt/executor.h"
#include "tests/simt/shadow_memory.h"
#include "tests/simt/shared_variables.h"

// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming): names that the linker and the
// compiler give.
extern "C" const std::byte __executable_start[];
extern "C" const std::byte end[];

namespace simt {
namespace {

// The source line of an instruction, with the lines that it was inlined to; from addr2line, which comes with
// the compiler.
std::string source_line(uint32_t site) {
  std::array<char, 4096> program{};
  if (readlink("/proc/self/exe", program.data(), program.size() - 1) < 0) return "?";
  std::array<char, 4400> command{};
  std::snprintf(command.data(), command.size(), "addr2line -C -i -e '%s' 0x%x 2>/dev/null", program.data(),
                site - 1);
  FILE* pipe = popen(command.data(), "r");  // NOLINT(cert-env33-c): the program's own name
  if (pipe == nullptr) return "?";
  std::string lines;
  std::array<char, 1024> line{};
  while (std::fgets(line.data(), line.size(), pipe) != nullptr) {
    line[std::strcspn(line.data(), " \n")] = '\0';
    lines += (lines.empty() ? "" : " < ") + std::string(line.data());
  }
  pclose(pipe);
  return lines;
}

class Shadow final : public Observer, public MemoryObserver {
 public:
  Shadow() {
    set_observer(this);
    set_memory_observer(this);
  }
  void launch_begins(const Launch& launch) override;
  void block_begins(uint32_t block, std::byte* dynamic_shared, size_t dynamic_shared_bytes) override;
  void block_barrier() override { clocks_.block_barrier(); }
  void warp_barrier(int warp, uint32_t lanes) override { clocks_.warp_barrier(warp, lanes); }
  void thread_resumes(int thread) override { thread_ = thread; }
  void launch_ends() override;
  void atomic(const void* address, size_t bytes, bool writes) override {
    if (in_kernel) access(address, bytes, writes, true, nullptr);
  }

  void allocated(const Allocation& allocation) override;
  void freed(const Allocation& allocation) override {
    device_.erase(allocation.begin);
    last_ = nullptr;
  }
  void written(const void* begin, size_t bytes) override;

  void access(const void* address, size_t bytes, bool writes, bool atomic, const void* return_address);

 private:
  Watched* find(const void* address, bool& shared);
  Watched* find_on_device(const void* address);
  void check_elsewhere(const void* address, size_t bytes, bool writes, uint32_t site);
  void check(Cell& cell, bool writes, bool atomic, bool shared, uint32_t site);
  void report_race(bool writes, Access other, bool other_writes, uint32_t other_site, uint32_t site);
  void say(const std::string& fault, uint32_t site);

  uint32_t launch_ = 0;
  bool seen_any_ = false;  // access of the launch
  uint32_t thread_ = 0;
  BlockClocks clocks_;
  std::vector<Watched> static_shared_;  // the kernel's __shared__ variables
  Watched dynamic_shared_{};
  std::map<const std::byte*, Watched> device_;  // by the allocation's begin
  Watched* last_ = nullptr;                     // of device_, where the last access was
  size_t bytes_ = 0;                            // of the access that is being looked at
};

Shadow& shadow() {
  static Shadow instance;
  return instance;
}
// Watches from the beginning of the program.
[[maybe_unused]] const Shadow& kStart = shadow();

void Shadow::launch_begins(const Launch& launch) {
  if (uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z > Access::kMaxBlock) {
    std::fprintf(stderr, "simt: kernel %s has more blocks than are watched\n", launch.kernel);
    std::abort();
  }
  last_ = nullptr;
  seen_any_ = false;
  static_shared_.clear();
  for (const MemoryRange& variable : shared_variables(launch.function)) {
    static_shared_.push_back(Watched{variable.begin, std::vector<Cell>(variable.bytes)});
  }
  if (++launch_ <= Access::kMaxLaunch) return;
  // The numbers begin again: whatever was written stays written, and is before this launch.
  launch_ = 1;
  for (auto& [begin, watched] : device_) {
    for (Cell& cell : watched.cells) {
      if (!cell.writer.none()) cell.writer = Access::by_host();
      cell.readers = {};
    }
  }
}

// A kernel that touches nothing is one that was compiled without ${simt_shadow_options}.
void Shadow::launch_ends() {
  if (!seen_any_ && !has_faulted()) report("no access was seen: the kernel is not compiled for this record");
}

void Shadow::block_begins(uint32_t block, std::byte* dynamic_shared, size_t dynamic_shared_bytes) {
  clocks_.begin(launch_, block);
  for (Watched& variable : static_shared_) variable.clear();
  dynamic_shared_.clear();
  dynamic_shared_.begin = dynamic_shared;
  dynamic_shared_.cells.resize(dynamic_shared_bytes);
}

void Shadow::allocated(const Allocation& allocation) {
  device_[allocation.begin] = Watched{allocation.begin, std::vector<Cell>(allocation.bytes)};
}

void Shadow::written(const void* begin, size_t bytes) {
  Watched* watched = find_on_device(begin);
  if (watched == nullptr) return;
  const size_t first = static_cast<const std::byte*>(begin) - watched->begin;
  for (size_t i = first; i < first + bytes; ++i) watched->cells[i] = Cell{Access::by_host(), {}, {}};
}

Watched* Shadow::find_on_device(const void* address) {
  if (last_ != nullptr && last_->holds(address)) return last_;
  auto it = device_.upper_bound(static_cast<const std::byte*>(address));
  if (it == device_.begin()) return nullptr;
  --it;
  if (!it->second.holds(address)) return nullptr;
  return last_ = &it->second;
}

Watched* Shadow::find(const void* address, bool& shared) {
  shared = true;
  if (dynamic_shared_.holds(address)) return &dynamic_shared_;
  for (Watched& variable : static_shared_) {
    if (variable.holds(address)) return &variable;
  }
  shared = false;
  return find_on_device(address);
}

void Shadow::say(const std::string& fault, uint32_t site) {
  report_in_thread(fault, site == 0 ? "an atomic operation" : source_line(site));
}

void Shadow::access(const void* address, size_t bytes, bool writes, bool atomic, const void* return_address) {
  if (has_faulted()) return;
  seen_any_ = true;
  const uint32_t site =
      return_address == nullptr
          ? 0
          : static_cast<uint32_t>(static_cast<const std::byte*>(return_address) - __executable_start);
  bool shared = false;
  Watched* watched = find(address, shared);
  if (watched == nullptr) return check_elsewhere(address, bytes, writes, site);
  const size_t first = static_cast<const std::byte*>(address) - watched->begin;
  const std::string memory = shared ? "shared memory" : "device memory";
  if (first + bytes > watched->cells.size()) {
    return say(std::to_string(bytes) + " bytes reach beyond their allocation in " + memory, site);
  }
  if (bytes <= 16 && std::has_single_bit(bytes) && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    return say("misaligned access of " + std::to_string(bytes) + " bytes in " + memory, site);
  }
  watched->touch(first, first + bytes);
  bytes_ = bytes;
  for (size_t i = first; i < first + bytes && !has_faulted(); ++i) {
    check(watched->cells[i], writes, atomic, shared, site);
  }
}

// The thread's own stack is fine, and reading the program's constants, and nothing else is.
void Shadow::check_elsewhere(const void* address, size_t bytes, bool writes, uint32_t site) {
  const auto* at = static_cast<const std::byte*>(address);
  const MemoryRange stack = thread_stack(static_cast<int>(thread_));
  if (at >= stack.begin && at < stack.begin + stack.bytes) return;
  if (at >= __executable_start && at < end) {
    if (writes) say("write to a static variable that is no __shared__ variable of the kernel", site);
    return;
  }
  say(std::string(writes ? "write" : "read") + " of " + std::to_string(bytes) +
          " bytes that are neither the device's, nor shared, nor the thread's own",
      site);
}

void Shadow::check(Cell& cell, bool writes, bool atomic, bool shared, uint32_t site) {
  const bool both_atomic = atomic && cell.writer.atomic();
  if (!both_atomic && !clocks_.ordered(cell.writer, thread_)) {
    return report_race(writes, cell.writer, true, cell.sites[0], site);
  }
  if (!writes || atomic) {
    if (shared && cell.writer.none()) {
      return say("read of " + std::to_string(bytes_) +
                     " bytes of shared memory that no thread of the block has written",
                 site);
    }
  }
  const Access access = clocks_.access(thread_, atomic);
  if (writes) {
    for (int reader = 0; reader < 2; ++reader) {
      if (!clocks_.ordered(cell.readers[reader], thread_)) {
        return report_race(true, cell.readers[reader], false, cell.sites[1 + reader], site);
      }
    }
    cell = {access, {}, {site, 0, 0}};
    return;
  }
  const int slot = clocks_.ordered(cell.readers[0], thread_) ? 0 : 1;
  if (slot == 1 && !clocks_.ordered(cell.readers[1], thread_)) return;
  cell.readers[slot] = access;
  cell.sites[1 + slot] = site;
}

void Shadow::report_race(bool writes, Access other, bool other_writes, uint32_t other_site, uint32_t site) {
  const Access self = clocks_.access(thread_, false);
  std::string fault = std::string("race: ") + (writes ? "write" : "read") + " of " + std::to_string(bytes_) +
                      " bytes and the " + (other_writes ? "write" : "read") + " by thread " +
                      std::to_string(other.thread());
  fault +=
      other.block() == self.block() ? " of the same block" : " of block " + std::to_string(other.block());
  fault += " at " + (other_site == 0 ? std::string("an atomic operation") : source_line(other_site)) +
           " have no order";
  say(fault, site);
}

}  // namespace

}  // namespace simt

// ---- what the compiler calls before each access of a kernel ----

namespace {
inline void note(const void* address, size_t bytes, bool writes, const void* site) {
  if (simt::in_kernel) simt::shadow().access(address, bytes, writes, false, site);
}
}  // namespace

extern "C" {
#define SIMT_ACCESS(bytes)                                                                             \
  void __tsan_read##bytes(void* address) { note(address, bytes, false, __builtin_return_address(0)); } \
  void __tsan_write##bytes(void* address) { note(address, bytes, true, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##bytes(void* address) {                                                   \
    note(address, bytes, false, __builtin_return_address(0));                                          \
  }                                                                                                    \
  void __tsan_unaligned_write##bytes(void* address) {                                                  \
    note(address, bytes, true, __builtin_return_address(0));                                           \
  }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
#undef SIMT_ACCESS
void __tsan_read_range(void* address, size_t bytes) {
  note(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  note(address, bytes, true, __builtin_return_address(0));
}
void __tsan_vptr_update(void** /*pointer*/, void* /*value*/) {}
void __tsan_vptr_read(void** /*pointer*/) {}
void __tsan_func_entry(void* /*return_address*/) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Atomic operations have been noted by device_atomic_functions.h; these do them. Nothing runs at the same
// time.
#define SIMT_ATOMIC(bits, T)                                                                   \
  T __tsan_atomic##bits##_load(const volatile T* address, int /*order*/) { return *address; }  \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* address, T* expected, T value, \
                                                    int /*order*/, int /*failure_order*/) {    \
    const T old = *address;                                                                    \
    if (old != *expected) return *expected = old, 0;                                           \
    *address = value;                                                                          \
    return 1;                                                                                  \
  }
SIMT_ATOMIC(16, uint16_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)
#undef SIMT_ATOMIC
}
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)
