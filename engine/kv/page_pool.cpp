#include "engine/kv/page_pool.h"

#include <fmt/core.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

namespace kvfold {

Result<std::shared_ptr<PagePool>> PagePool::create(CacheType type, int head_dim, size_t budget_bytes) {
  KVFOLD_CHECK(head_dim > 0);
  const size_t page_bytes = kv_page_bytes(type, head_dim);
  const size_t capacity = std::min<size_t>(budget_bytes / page_bytes, std::numeric_limits<PageId>::max());
  if (capacity == 0) {
    return Status::error(fmt::format("cache pool: a budget of {} bytes is below one page ({} bytes)",
                                     budget_bytes, page_bytes));
  }
  void* arena = mmap(nullptr, capacity * page_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) {
    return Status::error(
        fmt::format("cache pool: cannot map {} bytes: {}", capacity * page_bytes, std::strerror(errno)));
  }
  return std::shared_ptr<PagePool>(
      new PagePool(type, head_dim, page_bytes, capacity, static_cast<std::byte*>(arena)));
}

PagePool::PagePool(CacheType type, int head_dim, size_t page_bytes, size_t capacity, std::byte* arena)
    : type_(type), head_dim_(head_dim), page_bytes_(page_bytes), capacity_(capacity), arena_(arena) {}

PagePool::~PagePool() {
  KVFOLD_CHECK(held_ == 0);
  munmap(arena_, capacity_ * page_bytes_);
}

Status PagePool::require(size_t pages) const {
  if (pages <= capacity_ - held_) return {};
  return Status::error(fmt::format("cache pool exhausted: {} bytes wanted, {} held, {} allowed",
                                   pages * page_bytes_, held_ * page_bytes_, capacity_ * page_bytes_));
}

PageId PagePool::allocate() {
  KVFOLD_CHECK(held_ < capacity_);
  PageId page;
  if (free_.empty()) {
    page = static_cast<PageId>(references_.size());
    references_.push_back(1);
  } else {
    page = free_.back();
    free_.pop_back();
    references_[page] = 1;
  }
  peak_ = std::max(peak_, ++held_);
  return page;
}

void PagePool::release(PageId page) {
  KVFOLD_CHECK(references_[page] > 0);
  if (--references_[page] > 0) return;
  free_.push_back(page);
  --held_;
}

}  // namespace kvfold
