// Q6_K: 256 elements in 16 half groups of 16; 6-bit integers around zero, an 8-bit scale a half group and one
// scale for the block. w = d * sc * (q - 32).
#pragma once

#include "kernels/formats/block.h"

namespace kvfold {

struct Q6_K {
  static constexpr const char* kName = "q6_k";
  static constexpr WeightType kType = WeightType::kQ6_K;
  static constexpr int kBlockElements = 256;
  static constexpr bool kHasMin = false;
  static constexpr bool kHasSubScales = true;
  struct Block {
    uint8_t
        ql[128];  // low four bits: of each 128 elements, groups 0 and 2 share 32 bytes, then groups 1 and 3
    uint8_t qh[64];  // high two bits: of each 128 elements, the four groups share 32 bytes
    int8_t scales[16];
    uint16_t d;  // f16
  };
  static_assert(sizeof(Block) == 210);

  KVFOLD_HD static void group(const Block& b, int index, QuantGroup& out) {
    const int half = index / 4;
    const int quarter = index % 4;
    const uint8_t* low = b.ql + 64 * half + 32 * (quarter % 2);
    const uint8_t* high = b.qh + 32 * half;
    for (int i = 0; i < 32; ++i) {
      const int q = (low[i] >> (4 * (quarter / 2)) & 15) | (high[i] >> (2 * quarter) & 3) << 4;
      out.q[i] = static_cast<int8_t>(q - 32);
    }
    out.set_scale(f16_to_f32(b.d), 0);
    out.sub[0] = b.scales[2 * index];
    out.sub[1] = b.scales[2 * index + 1];
  }

  static void encode(const float* x, Block& b) {
    // Each half group's own best scale, then the block's, so that the largest of them becomes -128.
    float scales[16];
    for (int h = 0; h < 16; ++h) scales[h] = largest_magnitude(x + 16 * h, 16) / -32;
    const float extreme = largest_magnitude(scales, 16);
    const float inverse = extreme != 0 ? -128 / extreme : 0;
    b.d = f32_to_f16(extreme != 0 ? 1 / inverse : 0);
    const float d = f16_to_f32(b.d);
    for (uint8_t& byte : b.ql) byte = 0;
    for (uint8_t& byte : b.qh) byte = 0;
    for (int h = 0; h < 16; ++h)
      b.scales[h] = static_cast<int8_t>(clamp_to(round_to_int(scales[h] * inverse), -128, 127));
    for (int e = 0; e < 256; ++e) {
      const float step = d * static_cast<float>(b.scales[e / 16]);
      const int q = step != 0 ? clamp_to(round_to_int(x[e] / step), -32, 31) + 32 : 32;
      const int half = e / 128;
      const int quarter = e % 128 / 32;
      const int i = e % 32;
      uint8_t& low = b.ql[64 * half + 32 * (quarter % 2) + i];
      uint8_t& high = b.qh[32 * half + i];
      low = static_cast<uint8_t>(low | (q & 15) << (4 * (quarter / 2)));
      high = static_cast<uint8_t>(high | (q >> 4) << (2 * quarter));
    }
  }
};

}  // namespace kvfold
