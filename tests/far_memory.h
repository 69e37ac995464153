// Page memory that the host cannot touch, for tests: as a device's, but of this process.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/kv/page_memory.h"

namespace kvfold::testing {

class FarMemory : public PageMemory {
 public:
  explicit FarMemory(size_t bytes) : bytes_(bytes, std::byte{0xFF}) {}
  std::byte* base() const override { return nullptr; }
  bool on_host() const override { return false; }
  void read(size_t offset, std::span<std::byte> to) override {
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
  }
  void write(size_t offset, std::span<const std::byte> from) override {
    std::copy(from.begin(), from.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(offset));
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace kvfold::testing
