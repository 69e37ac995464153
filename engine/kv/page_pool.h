// The memory of KV pages: one arena with a byte budget, reference counts, copy-on-write.
//
// Pages are shared between caches and slices; a page may be written only while exactly one of them holds it.
// The pool and everything over it belong to one thread at a time (kernels may read and write page bytes from
// many).
//
// Pages may lie on a device. The host then works on copies of them, a few at a time: read() and
// write() fetch a page when it is not among them and may hold something, and flush() sends back what was
// written, before kernels run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/kv/page_memory.h"
#include "engine/status.h"
#include "kernels/kv_page.h"

namespace kvfold {

using PageId = uint32_t;

class PagePool {
 public:
  // An arena for up to `budget_bytes` of pages of one layout. The budget is address space only: memory is
  // taken page by page as it is written. Errors: a budget below one page; address space that cannot be had.
  static Result<std::shared_ptr<PagePool>> create(CacheType type, int head_dim, size_t budget_bytes);
  // An arena in memory that a backend gives: all of `bytes`.
  static Result<std::shared_ptr<PagePool>> create(CacheType type, int head_dim,
                                                  std::unique_ptr<PageMemory> memory, size_t bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  CacheType type() const { return type_; }
  int head_dim() const { return head_dim_; }
  size_t page_bytes() const { return page_bytes_; }
  size_t budget_bytes() const { return capacity_ * page_bytes_; }
  // As the backend's kernels see it.
  KvPagesView view() const { return {memory_->base(), page_bytes_, type_, head_dim_}; }

  // What went wrong with a device that pages lie on. Asked after read() by whoever keeps what it gave.
  Status status() const { return memory_->status(); }
  // That, or an error that names the bytes wanted, held and allowed, unless `pages` more can be allocated
  // now.
  Status require(size_t pages) const;
  // A page with one reference. REQUIRES: require(1).ok().
  PageId allocate();
  void retain(PageId page) { ++references_[page]; }
  void release(PageId page);
  uint32_t references(PageId page) const { return references_[page]; }

  // Whether pages lie in this process: only then may several threads read and write different pages at once.
  bool on_host() const { return on_host_; }
  // A page's bytes on the host. Where pages lie on a device the pointer is to a copy, good until kCopies
  // other pages were asked for, or flush().
  const std::byte* read(PageId page) { return on_host_ ? in_place(page) : copy_of(page).bytes.data(); }
  std::byte* write(PageId page) { return on_host_ ? in_place(page) : written(page); }
  // Sends written copies to the device and forgets all copies. Backends call it before kernels touch pages.
  void flush();

  // A value that pages cannot hold (kv_holds()), and the table that it was made for.
  struct Unheld {
    int table;
    float value;
  };
  // Work on rows, where the pages lie (page_rows.cpp). Pages that are written are held by one table alone,
  // and none of them is read by the same call. What a change makes that the pages cannot hold is told, and
  // the pages are then of no use. Errors: the device's.
  Result<std::optional<Unheld>> change_rows(const RowChange& change, std::span<const RowRun> runs);
  // Euclidean norms of the rows `from`: norms [runs][kPageRows].
  Status row_norms(std::span<const RowRun> runs, std::span<double> norms);
  void copy_rows(std::span<const RowCopy> copies);

  // Counters, for tests and for those who study costs.
  size_t pages_held() const { return held_; }
  size_t peak_pages() const { return peak_; }
  uint64_t rows_copied() const { return rows_copied_; }

 private:
  static constexpr size_t kCopies = 32;
  struct Copy {
    PageId page;
    bool written;
    uint64_t asked;  // when, counted in calls
    std::vector<std::byte> bytes;
  };
  PagePool(CacheType type, int head_dim, size_t page_bytes, size_t capacity,
           std::unique_ptr<PageMemory> memory);
  std::optional<Unheld> change_here(const RowChange& change, std::span<const RowRun> runs, bool store);
  std::byte* in_place(PageId page) const { return memory_->base() + static_cast<size_t>(page) * page_bytes_; }
  Copy& copy_of(PageId page);
  std::byte* written(PageId page);
  void send_back(Copy& copy);

  CacheType type_;
  int head_dim_;
  size_t page_bytes_;
  size_t capacity_;  // pages
  std::unique_ptr<PageMemory> memory_;
  bool on_host_;
  std::vector<Copy> copies_;                        // at most kCopies; empty on the host
  std::unordered_map<PageId, size_t> copy_places_;  // page to its place in copies_
  uint64_t asked_ = 0;
  // A page that was allocated since the last flush() and not yet asked for holds nothing: no kernel has
  // written there, so it is not fetched.
  uint64_t flushes_ = 1;
  std::vector<uint64_t> allocated_after_;  // which flush, by page, or 0; empty on the host
  std::vector<uint32_t> references_;       // one a page ever used
  std::vector<PageId> free_;
  size_t held_ = 0;
  size_t peak_ = 0;
  uint64_t rows_copied_ = 0;
};

}  // namespace kvfold
