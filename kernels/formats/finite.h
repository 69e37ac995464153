// Infinity and NaN among weights.
#pragma once

#include <cstddef>

#include "kernels/formats/format.h"

namespace kvfold {

// Whether `count` columns (a multiple of the format's block_elements), as decode() would give them, hold
// neither. Looks at scales alone where weights are quantised.
bool is_finite(WeightType type, const std::byte* blocks, size_t count);

}  // namespace kvfold
