// F32, F16 and BF16: weights that are not quantised. One element a block.
#pragma once

#include <cstring>

#include "kernels/formats/format.h"
#include "kernels/half.h"

namespace kvfold {

struct F32 {
  static constexpr const char* kName = "f32";
  static constexpr WeightType kType = WeightType::kF32;
  using Element = float;
  KVFOLD_HD static float decode(float x) { return x; }
  static float encode(float x) { return x; }
};

struct F16 {
  static constexpr const char* kName = "f16";
  static constexpr WeightType kType = WeightType::kF16;
  using Element = uint16_t;
  KVFOLD_HD static float decode(uint16_t x) { return f16_to_f32(x); }
  static uint16_t encode(float x) { return f32_to_f16(x); }
};

struct BF16 {
  static constexpr const char* kName = "bf16";
  static constexpr WeightType kType = WeightType::kBF16;
  using Element = uint16_t;
  KVFOLD_HD static float decode(uint16_t x) { return bf16_to_f32(x); }
  static uint16_t encode(float x) { return f32_to_bf16(x); }
};

}  // namespace kvfold
