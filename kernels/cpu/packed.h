// Weights repacked for vector kernels: 16 rows side by side, so that one load feeds 16 outputs and no sum is
// ever taken across a vector.
//
// A tile is 16 rows; it holds, for each group of 32 columns in turn, one block:
//   integers  the weights made unsigned by adding kOffset. 8 vectors of 64 bytes, vector j holding columns 4j
//   .. 4j + 3 of
//             each row: byte 4 * row + column % 4. Four-bit formats keep vectors j (low halves) and j + 4
//             (high halves) in the same 64 bytes.
//   scales    16 of them: f16 where the format's own are, else f32
//   mins      likewise, for formats with a min
//   subs      for Q6_K, 16 int8 for each half of the group
// Rows past the matrix's last are zeros with scale 0.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "kernels/formats/all.h"
#include "kernels/views.h"

namespace kvfold {

inline constexpr int kTileRows = 16;

template <class Format>
struct PackedTraits;
template <>
struct PackedTraits<Q4_0> {
  static constexpr int kOffset = 8;
  static constexpr bool kNibbles = true, kHalfScales = true;
};
template <>
struct PackedTraits<Q4_1> {
  static constexpr int kOffset = 0;
  static constexpr bool kNibbles = true, kHalfScales = true;
};
template <>
struct PackedTraits<Q5_0> {
  static constexpr int kOffset = 16;
  static constexpr bool kNibbles = false, kHalfScales = true;
};
template <>
struct PackedTraits<Q5_1> {
  static constexpr int kOffset = 0;
  static constexpr bool kNibbles = false, kHalfScales = true;
};
template <>
struct PackedTraits<Q8_0> {
  static constexpr int kOffset = 128;
  static constexpr bool kNibbles = false, kHalfScales = true;
};
template <>
struct PackedTraits<Q4_K> {
  static constexpr int kOffset = 0;
  static constexpr bool kNibbles = true, kHalfScales = false;
};
template <>
struct PackedTraits<Q5_K> {
  static constexpr int kOffset = 0;
  static constexpr bool kNibbles = false, kHalfScales = false;
};
template <>
struct PackedTraits<Q6_K> {
  static constexpr int kOffset = 32;
  static constexpr bool kNibbles = false, kHalfScales = true;
};

// The block of one group of a tile.
template <class Format>
struct PackedBlock {
  using Traits = PackedTraits<Format>;
  using Scale = std::conditional_t<Traits::kHalfScales, uint16_t, float>;
  alignas(Format::kHasMin || Format::kHasSubScales ? 64 : 32) uint8_t q[Traits::kNibbles ? 256 : 512];
  Scale scale[kTileRows];
  Scale min[Format::kHasMin ? kTileRows : 0];
  int8_t sub[Format::kHasSubScales ? 2 * kTileRows : 0];  // [half][row]
};

inline int64_t packed_tiles(const MatrixView& weight) { return (weight.rows + kTileRows - 1) / kTileRows; }

template <class Format>
size_t packed_tile_bytes(const MatrixView& weight) {
  return static_cast<size_t>(weight.columns / kGroup) * sizeof(PackedBlock<Format>);
}

inline void store_scale(float value, uint16_t& out) {
  out = f32_to_f16(value);
}  // exact: it came from an f16
inline void store_scale(float value, float& out) { out = value; }

template <class Format>
void pack_group(const QuantGroup& w, int row, PackedBlock<Format>& block) {
  using Traits = PackedTraits<Format>;
  for (int column = 0; column < kGroup; ++column) {
    const auto u = static_cast<uint8_t>(w.q[column] + Traits::kOffset);
    const int vector = column / 4;
    const int byte = 4 * row + column % 4;
    if constexpr (Traits::kNibbles) {
      uint8_t& pair = block.q[64 * (vector % 4) + byte];
      pair = static_cast<uint8_t>(vector < 4 ? (pair & 0xF0) | u : (pair & 0x0F) | u << 4);
    } else {
      block.q[64 * vector + byte] = u;
    }
  }
  store_scale(w.scale, block.scale[row]);
  if constexpr (Format::kHasMin) store_scale(w.min, block.min[row]);
  if constexpr (Format::kHasSubScales)
    for (int half = 0; half < 2; ++half) block.sub[half * kTileRows + row] = static_cast<int8_t>(w.sub[half]);
}

// Packs tiles [begin, end) to `out`, which is where tile 0 begins.
template <class Format>
void pack_tiles(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out) {
  constexpr int kGroups = Format::kBlockElements / kGroup;
  const int64_t blocks = weight.columns / Format::kBlockElements;
  const int64_t groups = weight.columns / kGroup;
  const auto* matrix = reinterpret_cast<const typename Format::Block*>(weight.data);
  auto* packed = reinterpret_cast<PackedBlock<Format>*>(out);
  for (int64_t tile = begin; tile < end; ++tile) {
    PackedBlock<Format>* to = packed + tile * groups;
    std::memset(static_cast<void*>(to), 0, packed_tile_bytes<Format>(weight));
    for (int r = 0; r < kTileRows && tile * kTileRows + r < weight.rows; ++r)
      for (int64_t g = 0; g < groups; ++g) {
        QuantGroup w;
        Format::group(matrix[(tile * kTileRows + r) * blocks + g / kGroups], static_cast<int>(g % kGroups),
                      w);
        pack_group<Format>(w, r, to[g]);
      }
  }
}

}  // namespace kvfold
