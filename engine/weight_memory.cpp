#include "engine/weight_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace kvfold {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;
// Address space taken at once. What is not touched takes no memory.
constexpr size_t kChunk = size_t{1} << 30;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

std::shared_ptr<std::byte> WeightMemory::allocate(size_t bytes) {
  bytes = round_up(std::max<size_t>(bytes, 1), 64);
  if (used_ + bytes > size_) {
    const size_t size = round_up(std::max(bytes, kChunk), kLargePage);
    const size_t mapped = size + kLargePage;
    void* memory =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    auto* aligned = static_cast<std::byte*>(memory) + (round_up(begin, kLargePage) - begin);
    madvise(aligned, size, MADV_HUGEPAGE);  // a wish
    chunk_ = std::shared_ptr<std::byte>(aligned, [memory, mapped](std::byte*) { munmap(memory, mapped); });
    used_ = 0;
    size_ = size;
  }
  std::shared_ptr<std::byte> out(chunk_, chunk_.get() + used_);
  used_ += bytes;
  return out;
}

void populate(const std::byte* data, size_t bytes) {
#if defined(MADV_POPULATE_READ)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = round_up(reinterpret_cast<uintptr_t>(data) + bytes, page);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace kvfold
