// How one lane of a warp reads its part of packed weights (packed.h): one traits struct a format is all that
// differs between the kernels' instances.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed.h"

namespace kvfold::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFU;

// One row's 32 columns of one group, as they lie in memory. Zeros where it was not loaded.
template <class Format>
struct LaneGroup {
  using P = Planes<Format>;
  uint4 integers[P::kIntegers / 16];
  uint32_t high[P::kHigh / 4 + 1];
  uint32_t scales;
  uint32_t supers;

  __device__ __forceinline__ void clear() {
    for (int i = 0; i < P::kIntegers / 16; ++i) integers[i] = make_uint4(0, 0, 0, 0);
    for (int i = 0; i < P::kHigh / 4; ++i) high[i] = 0;
    scales = 0;
    supers = 0;
  }

  // `unit`: (tile * groups + group) * 8 + row; `super`: the same over groups of 256 columns. load_super() is
  // apart because several groups share it.
  __device__ __forceinline__ void load_super(const PackedView& w, size_t super) {
    if constexpr (P::kSupers == 2) supers = reinterpret_cast<const uint16_t*>(w.supers)[super];
    if constexpr (P::kSupers == 4) supers = reinterpret_cast<const uint32_t*>(w.supers)[super];
  }
  __device__ __forceinline__ void load(const PackedView& w, size_t unit) {
    if constexpr (P::kIntegers == 32) {
      const auto* from =
          reinterpret_cast<const uint4*>(w.integers) + unit / kTileRows * 2 * kTileRows + unit % kTileRows;
      integers[0] = from[0];
      integers[1] = from[kTileRows];
    } else {
      integers[0] = reinterpret_cast<const uint4*>(w.integers)[unit];
    }
    load_rest(w, unit);
  }
  __device__ __forceinline__ void load_rest(const PackedView& w, size_t unit) {
    if constexpr (P::kHigh == 4) high[0] = reinterpret_cast<const uint32_t*>(w.high)[unit];
    if constexpr (P::kHigh == 8) {
      const uint2 bits = reinterpret_cast<const uint2*>(w.high)[unit];
      high[0] = bits.x;
      high[1] = bits.y;
    }
    if constexpr (P::kScales == 2) scales = reinterpret_cast<const uint16_t*>(w.scales)[unit];
    if constexpr (P::kScales == 4) scales = reinterpret_cast<const uint32_t*>(w.scales)[unit];
  }

  // As load(), of the integers only the words `quarter` and `quarter` + 4.
  __device__ __forceinline__ void load_word(const PackedView& w, size_t unit, int quarter) {
    if constexpr (P::kIntegers == 32) {
      const auto* from = reinterpret_cast<const uint32_t*>(w.integers) +
                         (unit / kTileRows * 2 * kTileRows + unit % kTileRows) * 4 + quarter;
      set_piece(integers[0], quarter, from[0]);
      set_piece(integers[1], quarter, from[4 * kTileRows]);
    } else {
      set_piece(integers[0], quarter, reinterpret_cast<const uint32_t*>(w.integers)[4 * unit + quarter]);
    }
    load_rest(w, unit);
  }

  // Columns 4i .. 4i + 3, a byte each; unsigned, kOffset above the weight's own integers (8-bit: signed, as
  // they are).
  __device__ __forceinline__ uint32_t word(int i) const {
    if constexpr (P::kIntegers == 32) return piece(integers[i / 4], i % 4);
    const uint32_t pair = piece(integers[0], i % 4);
    uint32_t out = (i < 4 ? pair : pair >> 4) & 0x0F0F0F0FU;
    if constexpr (P::kHigh == 4) out |= (i < 4 ? high[0] << (4 - i) : high[0] >> (i - 4)) & 0x10101010U;
    if constexpr (P::kHigh == 8) {
      const int shift = 4 - 2 * (i % 4);
      out |= (shift >= 0 ? high[i / 4] << shift : high[i / 4] >> -shift) & 0x30303030U;
    }
    return out;
  }
  // The same, signed: the weight's own integers.
  __device__ __forceinline__ uint32_t signed_word(int i) const {
    if constexpr (P::kOffset == 0) return word(i);
    // A borrow cannot leave its byte, as the top bit is set before and flipped back after.
    return ((word(i) | 0x80808080U) - static_cast<uint32_t>(P::kOffset) * 0x01010101U) ^ 0x80808080U;
  }

  __device__ __forceinline__ float scale() const {
    if constexpr (P::kSupers == 0) return from_half(scales & 0xFFFFU);
    const float d = from_half(supers & 0xFFFFU);
    if constexpr (Format::kHasSubScales) return d;
    return d * static_cast<float>(scales & 0xFFU);
  }
  __device__ __forceinline__ float min() const {
    if constexpr (!Format::kHasMin) return 0.0F;
    if constexpr (P::kSupers == 0) return from_half(scales >> 16);
    return -(from_half(supers >> 16) * static_cast<float>(scales >> 8));
  }
  // Q6_K's factors of the half groups.
  __device__ __forceinline__ int sub(int half) const {
    return static_cast<int>(static_cast<signed char>(scales >> (8 * half) & 0xFFU));
  }

 private:
  static __device__ __forceinline__ void set_piece(uint4& v, int i, uint32_t value) {
    v = make_uint4(i == 0 ? value : 0, i == 1 ? value : 0, i == 2 ? value : 0, i == 3 ? value : 0);
  }
  static __device__ __forceinline__ uint32_t piece(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }
};

}  // namespace kvfold::cuda
