#include "engine/kv/page_pool.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace kvfold {

Result<std::shared_ptr<PagePool>> PagePool::create(CacheType type, int head_dim, size_t budget_bytes) {
  // Checked before memory is asked for, as a budget below one page maps nothing.
  const size_t page_bytes = kv_page_bytes(type, head_dim);
  const size_t bytes = std::max(budget_bytes / page_bytes, size_t{1}) * page_bytes;
  KVFOLD_ASSIGN_OR_RETURN(std::unique_ptr<PageMemory> memory, map_host_memory(bytes));
  return create(type, head_dim, std::move(memory), budget_bytes);
}

Result<std::shared_ptr<PagePool>> PagePool::create(CacheType type, int head_dim,
                                                   std::unique_ptr<PageMemory> memory, size_t bytes) {
  KVFOLD_CHECK(head_dim > 0);
  const size_t page_bytes = kv_page_bytes(type, head_dim);
  const size_t capacity = std::min<size_t>(bytes / page_bytes, std::numeric_limits<PageId>::max());
  if (capacity == 0) {
    return Status::error(
        fmt::format("cache pool: a budget of {} bytes is below one page ({} bytes)", bytes, page_bytes));
  }
  return std::shared_ptr<PagePool>(new PagePool(type, head_dim, page_bytes, capacity, std::move(memory)));
}

PagePool::PagePool(CacheType type, int head_dim, size_t page_bytes, size_t capacity,
                   std::unique_ptr<PageMemory> memory)
    : type_(type),
      head_dim_(head_dim),
      page_bytes_(page_bytes),
      capacity_(capacity),
      memory_(std::move(memory)),
      on_host_(memory_->on_host()) {}

PagePool::~PagePool() { KVFOLD_CHECK(held_ == 0); }

PagePool::Copy& PagePool::copy_of(PageId page) {
  const bool holds_nothing = std::exchange(allocated_after_[page], 0) == flushes_;
  const auto known = copy_places_.find(page);
  if (known != copy_places_.end()) {
    Copy& copy = copies_[known->second];
    copy.asked = ++asked_;
    return copy;
  }
  size_t place = copies_.size();
  if (place < kCopies) {
    copies_.push_back({page, false, 0, std::vector<std::byte>(page_bytes_)});
  } else {
    const auto oldest = std::min_element(copies_.begin(), copies_.end(),
                                         [](const Copy& a, const Copy& b) { return a.asked < b.asked; });
    place = static_cast<size_t>(oldest - copies_.begin());
    send_back(*oldest);
    copy_places_.erase(oldest->page);
  }
  Copy& copy = copies_[place];
  copy.page = page;
  copy.asked = ++asked_;
  if (holds_nothing) {
    std::fill(copy.bytes.begin(), copy.bytes.end(), std::byte{0});
  } else {
    memory_->read(static_cast<size_t>(page) * page_bytes_, copy.bytes);
  }
  copy_places_[page] = place;
  return copy;
}

std::byte* PagePool::written(PageId page) {
  Copy& copy = copy_of(page);
  copy.written = true;
  return copy.bytes.data();
}

void PagePool::send_back(Copy& copy) {
  if (copy.written) memory_->write(static_cast<size_t>(copy.page) * page_bytes_, copy.bytes);
  copy.written = false;
}

void PagePool::flush() {
  for (Copy& copy : copies_) send_back(copy);
  copies_.clear();
  copy_places_.clear();
  ++flushes_;
}

Status PagePool::require(size_t pages) const {
  if (pages <= capacity_ - held_) return status();
  return Status::error(fmt::format("cache pool exhausted: {} bytes wanted, {} held, {} allowed",
                                   pages * page_bytes_, held_ * page_bytes_, capacity_ * page_bytes_));
}

PageId PagePool::allocate() {
  KVFOLD_CHECK(held_ < capacity_);
  PageId page;
  if (free_.empty()) {
    page = static_cast<PageId>(references_.size());
    references_.push_back(1);
    try {
      free_.reserve(references_.capacity());  // so that release(), which destructors call, need not
      if (!on_host_) allocated_after_.resize(references_.size());
    } catch (...) {
      references_.pop_back();
      throw;
    }
  } else {
    page = free_.back();
    free_.pop_back();
    references_[page] = 1;
  }
  if (!on_host_) allocated_after_[page] = flushes_;
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
