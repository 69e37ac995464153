// Q4_K: 256 elements in 8 groups of 32; a group has 4-bit integers, a 6-bit scale and a 6-bit min, the block
// a scale for each of these. w = d * sc * q - dmin * m.
#pragma once

#include "kernels/formats/k_scales.h"

namespace kvfold {

struct Q4_K {
  static constexpr const char* kName = "q4_k";
  static constexpr WeightType kType = WeightType::kQ4_K;
  static constexpr int kBlockElements = 256;
  static constexpr bool kHasMin = true;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d, dmin;    // f16
    uint8_t scales[12];  // see k_scales.h
    uint8_t qs[128];     // groups 2j and 2j + 1 share bytes 32j .. 32j + 31: low halves and high halves
  };
  static_assert(sizeof(Block) == 144);

  KVFOLD_HD static void group(const Block& b, int index, QuantGroup& out) {
    const uint8_t* bytes = b.qs + 32 * (index / 2);
    const int shift = 4 * (index % 2);
    for (int i = 0; i < 32; ++i) out.q[i] = static_cast<int8_t>(bytes[i] >> shift & 15);
    const KScale s = unpack_k_scale(b.scales, index);
    out.set_scale(f16_to_f32(b.d) * static_cast<float>(s.scale),
                  -(f16_to_f32(b.dmin) * static_cast<float>(s.min)));
  }

  static void encode(const float* x, Block& b) {
    uint8_t q[256];
    encode_k_groups(x, 15, b.d, b.dmin, b.scales, q);
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i)
        b.qs[32 * j + i] = static_cast<uint8_t>(q[64 * j + i] | q[64 * j + 32 + i] << 4);
  }
};

}  // namespace kvfold
