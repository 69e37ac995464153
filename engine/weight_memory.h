// Memory for repacked weights: large pages where the system gives them, and weights that follow each other in
// a forward pass side by side, so that reading ahead runs on from one into the next.
#pragma once

#include <cstddef>
#include <memory>

namespace kvfold {

class WeightMemory {
 public:
  // 64-byte aligned memory of zeros that lives as long as anyone holds it; null when there is none.
  std::shared_ptr<std::byte> allocate(size_t bytes);

 private:
  std::shared_ptr<std::byte> chunk_;
  size_t used_ = 0, size_ = 0;  // bytes of the chunk
};

// Asks the system to bring in the pages of a file's mapping in one go. Whether it does shows in time only.
void populate(const std::byte* data, size_t bytes);

}  // namespace kvfold
