// Q5_1: 5-bit integers with a scale and a min for 32. w = d * q + m.
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct Q5_1 {
  static constexpr const char* kName = "q5_1";
  static constexpr WeightType kType = WeightType::kQ5_1;
  static constexpr int kBlockElements = 32;
  static constexpr bool kHasMin = true;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d, m;   // f16
    uint8_t qh[4];   // as in Q5_0
    uint8_t qs[16];  // as in Q5_0
  };
  static_assert(sizeof(Block) == 24);

  KVFOLD_HD static void group(const Block& b, int, QuantGroup& out) {
    const uint32_t high = load_u32(b.qh);
    for (int i = 0; i < 16; ++i) out.q[i] = static_cast<int8_t>((b.qs[i] & 15) | ((high >> i & 1) << 4));
    for (int i = 0; i < 16; ++i)
      out.q[i + 16] = static_cast<int8_t>((b.qs[i] >> 4) | ((high >> (i + 16) & 1) << 4));
    out.set_scale(f16_to_f32(b.d), f16_to_f32(b.m));
  }

  static void encode(const float* x, Block& b) {
    const Range range = range_of(x, 32);
    const float d = (range.high - range.low) / 31;
    const float inverse = d != 0 ? 1 / d : 0;
    b.d = f32_to_f16(d);
    b.m = f32_to_f16(range.low);
    uint32_t high = 0;
    for (int i = 0; i < 16; ++i) {
      const int first = clamp_to(static_cast<int>((x[i] - range.low) * inverse + 0.5F), 0, 31);
      const int second = clamp_to(static_cast<int>((x[i + 16] - range.low) * inverse + 0.5F), 0, 31);
      b.qs[i] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
      high |= static_cast<uint32_t>(first >> 4) << i | static_cast<uint32_t>(second >> 4) << (i + 16);
    }
    store_u32(high, b.qh);
  }
};

}  // namespace kvfold
