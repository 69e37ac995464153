// Small things that the quantised formats share.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/formats/format.h"
#include "kernels/half.h"

namespace kvfold {

// Little-endian 32-bit words at any address.
KVFOLD_HD inline uint32_t load_u32(const uint8_t* bytes) {
  return static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8 |
         static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}
inline void store_u32(uint32_t value, uint8_t* bytes) {
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
}

// The element of largest magnitude, with its sign.
inline float largest_magnitude(const float* x, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  return largest;
}

struct Range {
  float low, high;
};
inline Range range_of(const float* x, int n) {
  Range range{x[0], x[0]};
  for (int i = 1; i < n; ++i) {
    range.low = std::fmin(range.low, x[i]);
    range.high = std::fmax(range.high, x[i]);
  }
  return range;
}

inline int clamp_to(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
inline int round_to_int(float x) { return static_cast<int>(std::nearbyintf(x)); }

}  // namespace kvfold
