// Half-precision numbers, as bits: IEEE 754 binary16 and bfloat16, in plain integer code that gives what the
// hardware's conversions give (round to nearest even, subnormals kept, NaN quiet).
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/formats/format.h"

namespace kvfold {

KVFOLD_HD inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000U) << 16;
  const uint32_t magnitude = h & 0x7FFFU;
  // Exponent and mantissa moved into place, the exponent's bias corrected by an exact multiplication, which
  // also normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1.0p112F;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t special = (magnitude << 13) | 0x7F800000U | (magnitude > 0x7C00U ? 0x00400000U : 0U);
  return std::bit_cast<float>(sign | (magnitude >= 0x7C00U ? special : finite));
}

KVFOLD_HD inline uint16_t f32_to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  // Normal results: round the 13 low bits away, to even, with the carry running into the exponent.
  const uint32_t normal = (magnitude - 0x38000000U + 0xFFFU + ((magnitude >> 13) & 1U)) >> 13;
  // Subnormal results: adding 0.5 makes the float unit round at bit 24 of the half's scale.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3F000000U;
  const uint32_t nan = 0x7E00U | ((magnitude >> 13) & 0x3FFU);
  uint32_t out = magnitude < 0x38800000U ? subnormal : normal;
  out = magnitude >= 0x477FF000U ? 0x7C00U : out;
  out = magnitude > 0x7F800000U ? nan : out;
  return static_cast<uint16_t>(sign | out);
}

KVFOLD_HD inline float bf16_to_f32(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

KVFOLD_HD inline uint16_t f32_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace kvfold
