// The page table of one lane's K or V: which rows of which pages stand at which slots.
//
// Every cache operation that only moves rows (extract, insert, erase, ...) is made of append(): it copies
// spans, never rows. A table holds a reference on each page it names.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/kv/page_pool.h"

namespace kvfold {

class PageTable {
 public:
  explicit PageTable(std::shared_ptr<PagePool> pool) : pool_(std::move(pool)) {}
  PageTable(const PageTable& other);
  PageTable& operator=(const PageTable&) = delete;
  ~PageTable();

  const std::shared_ptr<PagePool>& pool() const { return pool_; }
  std::span<const KvSpan> spans() const { return spans_; }
  int rows() const { return rows_; }
  // How many rows stand at slots below `slot`.
  int rows_before(int slot) const;
  bool holds(int slot) const { return find(slot) != nullptr; }
  // Whether `other` holds the same slots, however its rows are cut into pages.
  bool holds_same_slots(const PageTable& other) const;

  // Appends the rows of `from` at slots [begin, end), moved by `delta`. REQUIRES: they end up behind every
  // row here.
  void append(const PageTable& from, int begin, int end, int delta);
  // Copy-on-write, before rows are appended: where somebody else holds the last page and it has room, our
  // last rows move to a page of our own. The rows are to be copied by PagePool::copy_rows() before anything
  // reads them.
  void own_last_page(Part part, std::vector<RowCopy>& copies);
  // Appends one fresh row at `slot` and returns where to write it: in the last page where that has room, else
  // in a new one. REQUIRES: the last page has no room or is our own (own_last_page()); a page can be
  // allocated where one is needed.
  struct RowPlace {
    PageId page;
    int row;
  };
  RowPlace extend(int slot);
  // The same for `count` rows at consecutive slots, a page at a time.
  void extend_rows(int slot, int count);
  // Pages that appending `rows` fresh rows at consecutive slots allocates, own_last_page() included.
  // `forked`: to a copy of this table, made first.
  size_t pages_to_extend(int rows, bool forked) const;

  // The row at `slot` as f32. REQUIRES: holds(slot).
  void load(Part part, int slot, float* out) const;
  // Where the row at `slot` lies. REQUIRES: holds(slot).
  RowPlace place(int slot) const;

 private:
  const KvSpan* find(int slot) const;
  bool last_page_is_open() const;
  std::shared_ptr<PagePool> pool_;
  std::vector<KvSpan> spans_;
  int rows_ = 0;
};

// The rows of `old`, except that slots[i] holds row i of `with` where `with` has that row. Shares the pages
// of both. REQUIRES: slots increase; `old` holds every slot that is replaced.
std::shared_ptr<PageTable> splice(const PageTable& old, const PageTable& with, std::span<const int> slots);

}  // namespace kvfold
