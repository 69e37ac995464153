// Q4_1: 4-bit integers with a scale and a min for 32. w = d * q + m.
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct Q4_1 {
  static constexpr const char* kName = "q4_1";
  static constexpr WeightType kType = WeightType::kQ4_1;
  static constexpr int kBlockElements = 32;
  static constexpr bool kHasMin = true;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d, m;   // f16
    uint8_t qs[16];  // as in Q4_0
  };
  static_assert(sizeof(Block) == 20);

  KVFOLD_HD static void group(const Block& b, int, QuantGroup& out) {
    for (int i = 0; i < 16; ++i) out.q[i] = static_cast<int8_t>(b.qs[i] & 15);
    for (int i = 0; i < 16; ++i) out.q[i + 16] = static_cast<int8_t>(b.qs[i] >> 4);
    out.set_scale(f16_to_f32(b.d), f16_to_f32(b.m));
  }

  static void encode(const float* x, Block& b) {
    const Range range = range_of(x, 32);
    const float d = (range.high - range.low) / 15;
    const float inverse = d != 0 ? 1 / d : 0;
    b.d = f32_to_f16(d);
    b.m = f32_to_f16(range.low);
    for (int i = 0; i < 16; ++i) {
      const int low = clamp_to(static_cast<int>((x[i] - range.low) * inverse + 0.5F), 0, 15);
      const int high = clamp_to(static_cast<int>((x[i + 16] - range.low) * inverse + 0.5F), 0, 15);
      b.qs[i] = static_cast<uint8_t>(low | high << 4);
    }
  }
};

}  // namespace kvfold
