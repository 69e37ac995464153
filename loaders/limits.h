// Bounds on a model's sizes, far above any model, so that products of sizes cannot overflow.
#pragma once

#include <cstdint>

namespace kvfold {

inline constexpr int64_t kMostLayers = 4096;
inline constexpr int64_t kMostHeads = 65536;
inline constexpr int64_t kMostWidth = 1 << 24;
inline constexpr int64_t kMostContext = 1 << 30;

}  // namespace kvfold
