// Non-owning views of the things kernels read and write.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats/format.h"

namespace kvfold {

// A weight matrix as a file stores it: `rows` outputs of `columns` inputs each, row after row of whole
// blocks.
struct MatrixView {
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  const std::byte* data = nullptr;
};

}  // namespace kvfold
