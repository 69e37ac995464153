// Where the bytes of a pool's pages lie: in this process, or on a device.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "engine/status.h"
#include "kernels/kv_page.h"
#include "kernels/row_change.h"

namespace kvfold {

// A device that works on the rows of its pages, to the bits of PagePool's own loops (page_rows.cpp). Errors:
// the device's.
class RowComputer {
 public:
  virtual ~RowComputer() = default;
  // Whether the pages can hold all that was made (kv_holds()).
  virtual Result<bool> change_rows(const KvPagesView& pages, const RowChange& change,
                                   std::span<const RowRun> runs) = 0;
  // Of the rows `from`: norms [runs][kPageRows].
  virtual Status row_norms(const KvPagesView& pages, std::span<const RowRun> runs,
                           std::span<double> norms) = 0;
  // Queued: done before whatever is asked of the device next. A failure stays with the device.
  virtual void copy_rows(const KvPagesView& pages, std::span<const RowCopy> copies) = 0;
};

class PageMemory {
 public:
  virtual ~PageMemory() = default;
  // The first byte, as the kernels of its backend address it. May be dereferenced here only where on_host().
  virtual std::byte* base() const = 0;
  virtual bool on_host() const = 0;
  // Bytes from and to memory that is not on the host; every kernel before has finished when they return.
  virtual void read(size_t offset, std::span<std::byte> to) = 0;
  virtual void write(size_t offset, std::span<const std::byte> from) = 0;
  // Null where rows are worked on by the host alone.
  virtual RowComputer* computer() { return nullptr; }
  // The first failure of read() or write(); what was to be read since is zero.
  virtual Status status() const { return {}; }
};

// Address space of this process: memory is taken page by page as it is written. Errors: it cannot be had.
Result<std::unique_ptr<PageMemory>> map_host_memory(size_t bytes);

}  // namespace kvfold
