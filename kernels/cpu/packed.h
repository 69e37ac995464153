// Weights repacked for vector kernels: 16 rows side by side, so that one load feeds 16 outputs and no sum is
// ever taken across a vector.
//
// A tile is 16 rows; it holds, for each group of 32 columns in turn, one block. The weights are made unsigned
// by adding kOffset. Of the 8 vectors of 64 bytes that a block stands for, vector j holds columns 4j .. 4j +
// 3 of each row: byte 4 * row + column % 4.
//   q       kBits 8: the 8 vectors. Otherwise their low four bits: vectors j (low halves) and j + 4 (high
//           halves) share 64 bytes
//   high    kBits 5: bit 4 of vector j's bytes, one bit a byte, in word j. kBits 6: bits 4 and 5; vectors j
//           and 4 + j have bits 2j and 2j + 1 of the first and of the second 64 bytes
//   scale   16 of f16; times the 8-bit factor of K formats, for which `factor` holds 16 of these
//   min     likewise, with min_factor, for formats with a min; K formats subtract it
//   sub     for Q6_K, 16 int8 for each half of the group
// Rows past the matrix's last are zeros with scale 0.
#pragma once

#include <cstddef>
#include <cstring>

#include "kernels/formats/all.h"
#include "kernels/views.h"

namespace kvfold {

inline constexpr int kTileRows = 16;

template <class Format>
struct PackedTraits;
template <>
struct PackedTraits<Q4_0> {
  static constexpr int kBits = 4, kOffset = 8;
  static constexpr bool kFactors = false;
};
template <>
struct PackedTraits<Q4_1> {
  static constexpr int kBits = 4, kOffset = 0;
  static constexpr bool kFactors = false;
};
template <>
struct PackedTraits<Q5_0> {
  static constexpr int kBits = 5, kOffset = 16;
  static constexpr bool kFactors = false;
};
template <>
struct PackedTraits<Q5_1> {
  static constexpr int kBits = 5, kOffset = 0;
  static constexpr bool kFactors = false;
};
template <>
struct PackedTraits<Q8_0> {
  static constexpr int kBits = 8, kOffset = 128;
  static constexpr bool kFactors = false;
};
template <>
struct PackedTraits<Q4_K> {
  static constexpr int kBits = 4, kOffset = 0;
  static constexpr bool kFactors = true;
};
template <>
struct PackedTraits<Q5_K> {
  static constexpr int kBits = 5, kOffset = 0;
  static constexpr bool kFactors = true;
};
template <>
struct PackedTraits<Q6_K> {
  static constexpr int kBits = 6, kOffset = 32;
  static constexpr bool kFactors = false;
};

// The block of one group of a tile.
template <class Format>
struct alignas(32) PackedBlock {
  using Traits = PackedTraits<Format>;
  static constexpr bool kFactors = Traits::kFactors;
  static constexpr bool kMin = Format::kHasMin;
  uint8_t q[Traits::kBits == 8 ? 512 : 256];
  uint8_t high[Traits::kBits == 5 ? 64 : Traits::kBits == 6 ? 128 : 0];
  uint16_t scale[kTileRows];
  uint16_t min[kMin ? kTileRows : 0];
  uint8_t factor[kFactors ? kTileRows : 0];
  uint8_t min_factor[kFactors ? kTileRows : 0];
  int8_t sub[Format::kHasSubScales ? 2 * kTileRows : 0];  // [half][row]
};

inline int64_t packed_tiles(const MatrixView& weight) { return (weight.rows + kTileRows - 1) / kTileRows; }

template <class Format>
size_t packed_tile_bytes(const MatrixView& weight) {
  return static_cast<size_t>(weight.columns / kGroup) * sizeof(PackedBlock<Format>);
}

// A group's integers brought to one form, whatever its format: low four bits as GGUF's Q4_0 has them (column
// c and c + 16 in byte c), the bits above them one plane a bit.
struct GroupBits {
  uint32_t low[4];     // kBits 8: unused
  uint32_t planes[2];  // bit c: bit 4, and bit 5, of column c
};

template <class Format>
KVFOLD_HD inline GroupBits group_bits(const QuantGroup& w) {
  GroupBits out{};
  uint8_t low[16];
  for (int c = 0; c < 16; ++c)
    low[c] = static_cast<uint8_t>(((w.q[c] + PackedTraits<Format>::kOffset) & 15) |
                                  ((w.q[c + 16] + PackedTraits<Format>::kOffset) & 15) << 4);
  std::memcpy(out.low, low, sizeof low);
  for (int c = 0; c < kGroup; ++c) {
    const auto u = static_cast<uint32_t>(w.q[c] + PackedTraits<Format>::kOffset);
    out.planes[0] |= (u >> 4 & 1) << c;
    out.planes[1] |= (u >> 5 & 1) << c;
  }
  return out;
}

template <class Format>
KVFOLD_HD inline void pack_bits(const GroupBits& bits, int row, PackedBlock<Format>& block) {
  for (int j = 0; j < 4; ++j) std::memcpy(block.q + 64 * j + 4 * row, &bits.low[j], 4);
  if constexpr (PackedTraits<Format>::kBits == 5) {
    for (int j = 0; j < 8; ++j) {
      const uint32_t nibble = bits.planes[0] >> (4 * j) & 15;
      uint8_t& at = block.high[8 * j + row / 2];
      at = static_cast<uint8_t>(at | nibble << (4 * (row % 2)));
    }
  } else if constexpr (PackedTraits<Format>::kBits == 6) {
    for (int c = 0; c < kGroup; ++c) {
      const uint32_t two = (bits.planes[0] >> c & 1) | (bits.planes[1] >> c & 1) << 1;
      uint8_t& at = block.high[64 * (c / 16) + 4 * row + c % 4];
      at = static_cast<uint8_t>(at | two << (2 * (c / 4 % 4)));
    }
  }
}

// Packs group `g` of row `row` of a tile. `block` was zeros.
template <class Format>
KVFOLD_HD inline void pack_group(const typename Format::Block& from, int g, int row,
                                 PackedBlock<Format>& block) {
  constexpr bool kAsStored = !PackedTraits<Format>::kFactors && PackedTraits<Format>::kBits < 6;
  if constexpr (PackedTraits<Format>::kBits == 8) {
    for (int j = 0; j < 8; ++j) {
      uint32_t four;
      std::memcpy(&four, from.qs + 4 * j, 4);
      four ^= 0x80808080U;  // + 128
      std::memcpy(block.q + 64 * j + 4 * row, &four, 4);
    }
  } else if constexpr (kAsStored) {
    GroupBits bits{};
    std::memcpy(bits.low, from.qs, sizeof from.qs);
    if constexpr (PackedTraits<Format>::kBits == 5) std::memcpy(bits.planes, from.qh, sizeof from.qh);
    pack_bits<Format>(bits, row, block);
  } else {
    QuantGroup w;
    Format::group(from, g, w);
    pack_bits<Format>(group_bits<Format>(w), row, block);
    if constexpr (Format::kHasSubScales)
      for (int half = 0; half < 2; ++half)
        block.sub[half * kTileRows + row] = static_cast<int8_t>(w.sub[half]);
  }
  block.scale[row] = from.d;
  if constexpr (PackedTraits<Format>::kFactors) {
    const KScale k = unpack_k_scale(from.scales, g);
    block.min[row] = from.dmin;
    block.factor[row] = static_cast<uint8_t>(k.scale);
    block.min_factor[row] = static_cast<uint8_t>(k.min);
  } else if constexpr (Format::kHasMin) {
    block.min[row] = from.m;
  }
}

// Packs tiles [begin, end) to `out`, which is where tile 0 begins.
template <class Format>
KVFOLD_HD inline void pack_tiles(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out) {
  constexpr int kGroups = Format::kBlockElements / kGroup;
  const int64_t blocks = weight.columns / Format::kBlockElements;
  const int64_t groups = weight.columns / kGroup;
  const auto* matrix = reinterpret_cast<const typename Format::Block*>(weight.data);
  auto* packed = reinterpret_cast<PackedBlock<Format>*>(out);
  for (int64_t tile = begin; tile < end; ++tile) {
    PackedBlock<Format>* to = packed + tile * groups;
    std::memset(static_cast<void*>(to), 0, packed_tile_bytes<Format>(weight));
    for (int r = 0; r < kTileRows && tile * kTileRows + r < weight.rows; ++r)
      for (int64_t g = 0; g < groups; ++g)
        pack_group<Format>(matrix[(tile * kTileRows + r) * blocks + g / kGroups],
                           static_cast<int>(g % kGroups), r, to[g]);
  }
}

}  // namespace kvfold
