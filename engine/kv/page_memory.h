// Where the bytes of a pool's pages lie: in this process, or on a device.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "engine/status.h"

namespace kvfold {

class PageMemory {
 public:
  virtual ~PageMemory() = default;
  // The first byte, as the kernels of its backend address it. May be dereferenced here only where on_host().
  virtual std::byte* base() const = 0;
  virtual bool on_host() const = 0;
  // Bytes from and to memory that is not on the host; every kernel before has finished when they return.
  virtual void read(size_t offset, std::span<std::byte> to) = 0;
  virtual void write(size_t offset, std::span<const std::byte> from) = 0;
};

// Address space of this process: memory is taken page by page as it is written. Errors: it cannot be had.
Result<std::unique_ptr<PageMemory>> map_host_memory(size_t bytes);

}  // namespace kvfold
