// Q8_0: 8-bit integers, one scale for 32. w = d * q.
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct Q8_0 {
  static constexpr const char* kName = "q8_0";
  static constexpr WeightType kType = WeightType::kQ8_0;
  static constexpr int kBlockElements = 32;
  static constexpr bool kHasMin = false;
  static constexpr bool kHasSubScales = false;
  struct Block {
    uint16_t d;  // f16
    int8_t qs[32];
  };
  static_assert(sizeof(Block) == 34);

  KVFOLD_HD static void group(const Block& b, int, QuantGroup& out) {
    for (int i = 0; i < 32; ++i) out.q[i] = b.qs[i];
    out.set_scale(f16_to_f32(b.d), 0);
  }

  static void encode(const float* x, Block& b) {
    const float d = std::fabs(largest_magnitude(x, 32)) / 127;
    const float inverse = d != 0 ? 1 / d : 0;
    b.d = f32_to_f16(d);
    for (int i = 0; i < 32; ++i) b.qs[i] = static_cast<int8_t>(std::round(x[i] * inverse));
  }
};

}  // namespace kvfold
