// The memory of KV pages: one arena with a byte budget, reference counts, copy-on-write.
//
// Pages are shared between caches and slices; a page may be written only while exactly one of them holds it.
// The pool and everything over it belong to one thread at a time (kernels may read and write page bytes from
// many).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/status.h"
#include "kernels/kv_page.h"

namespace kvfold {

using PageId = uint32_t;

class PagePool {
 public:
  // An arena for up to `budget_bytes` of pages of one layout. The budget is address space only: memory is
  // taken page by page as it is written. Errors: a budget below one page; address space that cannot be had.
  static Result<std::shared_ptr<PagePool>> create(CacheType type, int head_dim, size_t budget_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  CacheType type() const { return type_; }
  int head_dim() const { return head_dim_; }
  size_t page_bytes() const { return page_bytes_; }
  size_t budget_bytes() const { return capacity_ * page_bytes_; }
  KvPagesView view() const { return {arena_, page_bytes_, type_, head_dim_}; }

  // An error that names the bytes wanted, held and allowed, unless `pages` more can be allocated now.
  Status require(size_t pages) const;
  // A page with one reference. REQUIRES: require(1).ok().
  PageId allocate();
  void retain(PageId page) { ++references_[page]; }
  void release(PageId page);
  uint32_t references(PageId page) const { return references_[page]; }
  std::byte* data(PageId page) const { return arena_ + static_cast<size_t>(page) * page_bytes_; }

  // Counters, for tests and for those who study costs.
  size_t pages_held() const { return held_; }
  size_t peak_pages() const { return peak_; }
  uint64_t rows_copied() const { return rows_copied_; }
  void count_copied_rows(uint64_t rows) { rows_copied_ += rows; }

 private:
  PagePool(CacheType type, int head_dim, size_t page_bytes, size_t capacity, std::byte* arena);
  CacheType type_;
  int head_dim_;
  size_t page_bytes_;
  size_t capacity_;  // pages
  std::byte* arena_;
  std::vector<uint32_t> references_;  // one a page ever used
  std::vector<PageId> free_;
  size_t held_ = 0;
  size_t peak_ = 0;
  uint64_t rows_copied_ = 0;
};

}  // namespace kvfold
