// The 6-bit scales and mins of Q4_K and Q5_K, and the fit that makes them.
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct KScale {
  int scale, min;  // 0 .. 63
};

// 8 scales and 8 mins of 6 bits in 12 bytes: bytes 0-3 hold scales 0-3 and bytes 4-7 mins 0-3 in their low
// six bits; bytes 8-11 hold the low four bits of scales 4-7 (low half) and mins 4-7 (high half), whose top
// two bits are the top two of bytes 0-3 and 4-7.
KVFOLD_HD inline KScale unpack_k_scale(const uint8_t* packed, int index) {
  if (index < 4) return {packed[index] & 63, packed[index + 4] & 63};
  return {(packed[index + 4] & 15) | (packed[index - 4] >> 6) << 4,
          (packed[index + 4] >> 4) | (packed[index] >> 6) << 4};
}

inline void pack_k_scale(KScale s, int index, uint8_t* packed) {
  if (index < 4) {
    packed[index] = static_cast<uint8_t>((packed[index] & 0xC0) | s.scale);
    packed[index + 4] = static_cast<uint8_t>((packed[index + 4] & 0xC0) | s.min);
  } else {
    packed[index + 4] = static_cast<uint8_t>((s.scale & 15) | (s.min & 15) << 4);
    packed[index - 4] = static_cast<uint8_t>((packed[index - 4] & 63) | (s.scale >> 4) << 6);
    packed[index] = static_cast<uint8_t>((packed[index] & 63) | (s.min >> 4) << 6);
  }
}

// The line scale * q - min through a group that leaves the least squared error, for integers 0 .. most.
// Starts from the group's range and alternates rounding with a least-squares fit.
struct KFit {
  float scale, min;
};
inline KFit fit_k_group(const float* x, int most) {
  const Range range = range_of(x, 32);
  KFit fit{(range.high - std::fmin(range.low, 0.0F)) / static_cast<float>(most), -std::fmin(range.low, 0.0F)};
  KFit best = fit;
  float least = -1;
  for (int round = 0; round < 8 && fit.scale > 0; ++round) {
    float sum_q = 0, sum_qq = 0, sum_x = 0, sum_xq = 0, error = 0;
    for (int i = 0; i < 32; ++i) {
      const auto q = static_cast<float>(clamp_to(round_to_int((x[i] + fit.min) / fit.scale), 0, most));
      const float miss = fit.scale * q - fit.min - x[i];
      error += miss * miss;
      sum_q += q;
      sum_qq += q * q;
      sum_x += x[i];
      sum_xq += x[i] * q;
    }
    if (least >= 0 && error >= least) break;
    least = error;
    best = fit;
    const float determinant = 32 * sum_qq - sum_q * sum_q;
    if (determinant <= 0) break;
    fit.scale = (32 * sum_xq - sum_x * sum_q) / determinant;
    fit.min = std::fmax(0.0F, -(sum_x - fit.scale * sum_q) / 32);  // mins are stored unsigned
  }
  return best;
}

// Eight groups of 32: block scales as f16 bits, packed 6-bit scales and mins, and integers 0 .. most.
inline void encode_k_groups(const float* x, int most, uint16_t& d_bits, uint16_t& dmin_bits, uint8_t* packed,
                            uint8_t* q) {
  KFit fits[8];
  float largest_scale = 0, largest_min = 0;
  for (int g = 0; g < 8; ++g) {
    fits[g] = fit_k_group(x + 32 * g, most);
    largest_scale = std::fmax(largest_scale, fits[g].scale);
    largest_min = std::fmax(largest_min, fits[g].min);
  }
  d_bits = f32_to_f16(largest_scale / 63);
  dmin_bits = f32_to_f16(largest_min / 63);
  const float d = f16_to_f32(d_bits);
  const float dmin = f16_to_f32(dmin_bits);
  for (int i = 0; i < 12; ++i) packed[i] = 0;
  for (int g = 0; g < 8; ++g) {
    const KScale s{d > 0 ? clamp_to(round_to_int(fits[g].scale / d), 0, 63) : 0,
                   dmin > 0 ? clamp_to(round_to_int(fits[g].min / dmin), 0, 63) : 0};
    pack_k_scale(s, g, packed);
    const float scale = d * static_cast<float>(s.scale);
    const float min = dmin * static_cast<float>(s.min);
    for (int i = 0; i < 32; ++i) {
      const float at = scale > 0 ? (x[32 * g + i] + min) / scale : 0;
      q[32 * g + i] = static_cast<uint8_t>(clamp_to(round_to_int(at), 0, most));
    }
  }
}

}  // namespace kvfold
