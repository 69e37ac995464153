// Scalar forms of the functions whose bits every kernel table must reproduce.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/formats/format.h"

namespace kvfold {

// e^x in f32, within 2 units in the last place over [-87.3, 88.3]; arguments outside are clamped to it.
// exp_f32(0) is 1. Range reduction x = n ln2 + r with ln2 in two parts, then a polynomial in r (minimax,
// degree 6; Cephes' expf uses the same form). Every step is one rounding, in this order, so that vector code
// gives the same bits.
KVFOLD_HD inline float exp_f32(float x) {
  x = x > -87.3F ? x
                 : -87.3F;  // NaN fails the comparison and is clamped too, so the conversion below is defined
  x = x < 88.3F ? x : 88.3F;
  const float n = std::nearbyintf(x * 1.44269504088896341F);
  float r = std::fma(n, -0.693359375F, x);
  r = std::fma(n, 2.12194440e-4F, r);
  float p = 1.9875691500e-4F;
  p = std::fma(p, r, 1.3981999507e-3F);
  p = std::fma(p, r, 8.3334519073e-3F);
  p = std::fma(p, r, 4.1665795894e-2F);
  p = std::fma(p, r, 1.6666665459e-1F);
  p = std::fma(p, r, 5.0000001201e-1F);
  p = std::fma(p, r * r, r);
  const auto exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  return (p + 1.0F) * std::bit_cast<float>(exponent);
}

// Folds 16 lanes in halves: the order in which every dot16 ends.
KVFOLD_HD inline float fold16(const float* lanes) {
  float half[8];
  for (int i = 0; i < 8; ++i) half[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) half[i] = half[i] + half[i + 4];
  return (half[0] + half[2]) + (half[1] + half[3]);
}

KVFOLD_HD inline float dot16(const float* a, const float* b, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int l = 0; l < 16; ++l) lanes[l] = std::fma(a[i + l], b[i + l], lanes[l]);
  for (int l = 0; i + l < n; ++l) lanes[l] = std::fma(a[i + l], b[i + l], lanes[l]);
  return fold16(lanes);
}

}  // namespace kvfold
