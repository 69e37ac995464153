// Q4_0: 4-bit integers around zero, one scale for 32. w = d * (q - 8).
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct Q4_0 {
  static constexpr const char* kName = "q4_0";
  static constexpr WeightType kType = WeightType::kQ4_0;
  static constexpr int kBlockElements = 32;
  static constexpr bool kHasMin = false;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d;      // f16
    uint8_t qs[16];  // element i in the low half of byte i, element i + 16 in the high half
  };
  static_assert(sizeof(Block) == 18);

  KVFOLD_HD static void group(const Block& b, int, QuantGroup& out) {
    for (int i = 0; i < 16; ++i) out.q[i] = static_cast<int8_t>((b.qs[i] & 15) - 8);
    for (int i = 0; i < 16; ++i) out.q[i + 16] = static_cast<int8_t>((b.qs[i] >> 4) - 8);
    out.set_scale(f16_to_f32(b.d), 0);
  }

  // The value of largest magnitude becomes -8, the one integer that has no mirror image.
  static void encode(const float* x, Block& b) {
    const float extreme = largest_magnitude(x, 32);
    const float d = extreme / -8;
    const float inverse = d != 0 ? 1 / d : 0;
    b.d = f32_to_f16(d);
    for (int i = 0; i < 16; ++i) {
      const int low = clamp_to(static_cast<int>(x[i] * inverse + 8.5F), 0, 15);
      const int high = clamp_to(static_cast<int>(x[i + 16] * inverse + 8.5F), 0, 15);
      b.qs[i] = static_cast<uint8_t>(low | high << 4);
    }
  }
};

}  // namespace kvfold
