// Q5_K: as Q4_K with 5-bit integers. w = d * sc * q - dmin * m.
#pragma once

#include "kernels/formats/k_scales.h"

namespace kvfold {

struct Q5_K {
  static constexpr const char* kName = "q5_k";
  static constexpr WeightType kType = WeightType::kQ5_K;
  static constexpr int kBlockElements = 256;
  static constexpr bool kHasMin = true;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d, dmin;    // f16
    uint8_t scales[12];  // see k_scales.h
    uint8_t qh[32];      // bit g of byte i is bit 4 of element i of group g
    uint8_t qs[128];     // the low four bits, as in Q4_K
  };
  static_assert(sizeof(Block) == 176);

  KVFOLD_HD static void group(const Block& b, int index, QuantGroup& out) {
    const uint8_t* bytes = b.qs + 32 * (index / 2);
    const int shift = 4 * (index % 2);
    for (int i = 0; i < 32; ++i)
      out.q[i] = static_cast<int8_t>((bytes[i] >> shift & 15) | (b.qh[i] >> index & 1) << 4);
    const KScale s = unpack_k_scale(b.scales, index);
    out.set_scale(f16_to_f32(b.d) * static_cast<float>(s.scale),
                  -(f16_to_f32(b.dmin) * static_cast<float>(s.min)));
  }

  static void encode(const float* x, Block& b) {
    uint8_t q[256];
    encode_k_groups(x, 31, b.d, b.dmin, b.scales, q);
    for (int i = 0; i < 32; ++i) b.qh[i] = 0;
    for (int g = 0; g < 8; ++g)
      for (int i = 0; i < 32; ++i) b.qh[i] = static_cast<uint8_t>(b.qh[i] | (q[32 * g + i] >> 4) << g);
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i)
        b.qs[32 * j + i] = static_cast<uint8_t>((q[64 * j + i] & 15) | (q[64 * j + 32 + i] & 15) << 4);
  }
};

}  // namespace kvfold
