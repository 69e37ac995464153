// Q5_0: 5-bit integers around zero, one scale for 32. w = d * (q - 16).
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct Q5_0 {
  static constexpr const char* kName = "q5_0";
  static constexpr WeightType kType = WeightType::kQ5_0;
  static constexpr int kBlockElements = 32;
  static constexpr bool kHasMin = false;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d;      // f16
    uint8_t qh[4];   // bit i of this little-endian word is bit 4 of element i
    uint8_t qs[16];  // the low four bits, as in Q4_0
  };
  static_assert(sizeof(Block) == 22);

  KVFOLD_HD static void group(const Block& b, int, QuantGroup& out) {
    const uint32_t high = load_u32(b.qh);
    for (int i = 0; i < 16; ++i)
      out.q[i] = static_cast<int8_t>(((b.qs[i] & 15) | ((high >> i & 1) << 4)) - 16);
    for (int i = 0; i < 16; ++i)
      out.q[i + 16] = static_cast<int8_t>(((b.qs[i] >> 4) | ((high >> (i + 16) & 1) << 4)) - 16);
    out.set_scale(f16_to_f32(b.d), 0);
  }

  static void encode(const float* x, Block& b) {
    const float extreme = largest_magnitude(x, 32);
    const float d = extreme / -16;
    const float inverse = d != 0 ? 1 / d : 0;
    b.d = f32_to_f16(d);
    uint32_t high = 0;
    for (int i = 0; i < 16; ++i) {
      const int first = clamp_to(static_cast<int>(x[i] * inverse + 16.5F), 0, 31);
      const int second = clamp_to(static_cast<int>(x[i + 16] * inverse + 16.5F), 0, 31);
      b.qs[i] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
      high |= static_cast<uint32_t>(first >> 4) << i | static_cast<uint32_t>(second >> 4) << (i + 16);
    }
    store_u32(high, b.qh);
  }
};

}  // namespace kvfold
