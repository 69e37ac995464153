#include "engine/kv/page_memory.h"

#include <fmt/core.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace kvfold {
namespace {

class HostMemory final : public PageMemory {
 public:
  HostMemory(void* base, size_t bytes) : base_(static_cast<std::byte*>(base)), bytes_(bytes) {}
  ~HostMemory() override { munmap(base_, bytes_); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  std::byte* base() const override { return base_; }
  bool on_host() const override { return true; }
  void read(size_t offset, std::span<std::byte> to) override {
    std::copy_n(base_ + offset, to.size(), to.begin());
  }
  void write(size_t offset, std::span<const std::byte> from) override {
    std::copy(from.begin(), from.end(), base_ + offset);
  }

 private:
  std::byte* base_;
  size_t bytes_;
};

}  // namespace

Result<std::unique_ptr<PageMemory>> map_host_memory(size_t bytes) {
  void* base =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return Status::error(fmt::format("cache pool: cannot map {} bytes: {}", bytes, std::strerror(errno)));
  // Attention reads pages from all over the arena: with large pages few of them miss the TLB.
  madvise(base, bytes, MADV_HUGEPAGE);
  return std::unique_ptr<PageMemory>(new HostMemory(base, bytes));
}

}  // namespace kvfold
