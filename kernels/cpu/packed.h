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

#include <algorithm>
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

// Where bit 4 of a block's 5-bit integers is gathered: word j holds it of vector j, 4 bits a row.
struct HighPlane {
  uint64_t words[8] = {};
  KVFOLD_HD void add(int j, int row, uint32_t nibble) {
    words[j] |= static_cast<uint64_t>(nibble) << (4 * row);
  }
};

// Integers as the file stores them: low four bits as GGUF's Q4_0 has them (column c and c + 16 in byte c),
// which is how vectors share bytes here too, and bit 4 of all columns in one word.
template <class Format>
KVFOLD_HD inline void pack_stored(const typename Format::Block& from, int row, PackedBlock<Format>& block,
                                  HighPlane& plane) {
  for (int j = 0; j < 4; ++j) std::memcpy(block.q + 64 * j + 4 * row, from.qs + 4 * j, 4);
  if constexpr (PackedTraits<Format>::kBits == 5) {
    const uint32_t bits = load_u32(from.qh);
    for (int j = 0; j < 8; ++j) plane.add(j, row, bits >> (4 * j) & 15);
  }
}

// Integers of any format of up to 6 bits, four columns a word.
template <class Format>
KVFOLD_HD inline void pack_decoded(const QuantGroup& w, int row, PackedBlock<Format>& block,
                                   HighPlane& plane) {
  uint8_t u[kGroup];
  for (int c = 0; c < kGroup; ++c) u[c] = static_cast<uint8_t>(w.q[c] + PackedTraits<Format>::kOffset);
  uint32_t words[8];
  std::memcpy(words, u, sizeof words);
  constexpr uint32_t kLow = 0x0F0F0F0F;
  for (int j = 0; j < 4; ++j) {
    const uint32_t pairs = (words[j] & kLow) | (words[j + 4] & kLow) << 4;
    std::memcpy(block.q + 64 * j + 4 * row, &pairs, sizeof pairs);
  }
  if constexpr (PackedTraits<Format>::kBits == 5) {
    // The product brings the lowest bits of four bytes side by side to the top.
    for (int j = 0; j < 8; ++j) plane.add(j, row, (words[j] >> 4 & 0x01010101U) * 0x10204080U >> 28);
  } else if constexpr (PackedTraits<Format>::kBits == 6) {
    for (int half = 0; half < 2; ++half) {
      uint32_t high = 0;
      for (int j = 0; j < 4; ++j) high |= (words[4 * half + j] >> 4 & 0x03030303U) << (2 * j);
      std::memcpy(block.high + 64 * half + 4 * row, &high, sizeof high);
    }
  }
}

// Packs group `g` of row `row` of a tile.
template <class Format>
KVFOLD_HD inline void pack_group(const typename Format::Block& from, int g, int row,
                                 PackedBlock<Format>& block, HighPlane& plane) {
  constexpr bool kAsStored = !PackedTraits<Format>::kFactors && PackedTraits<Format>::kBits < 6;
  if constexpr (PackedTraits<Format>::kBits == 8) {
    for (int j = 0; j < 8; ++j) {
      uint32_t four;
      std::memcpy(&four, from.qs + 4 * j, 4);
      four ^= 0x80808080U;  // + 128
      std::memcpy(block.q + 64 * j + 4 * row, &four, 4);
    }
  } else if constexpr (kAsStored) {
    pack_stored<Format>(from, row, block, plane);
  } else {
    QuantGroup w;
    Format::group(from, g, w);
    pack_decoded<Format>(w, row, block, plane);
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

// Packs tiles [begin, end) to `out`, which is where tile 0 begins. Block by block, so that each is written in
// one go.
template <class Format>
KVFOLD_HD inline void pack_tiles(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out) {
  constexpr int kGroups = Format::kBlockElements / kGroup;
  const int64_t blocks = weight.columns / Format::kBlockElements;
  const int64_t groups = weight.columns / kGroup;
  const auto* matrix = reinterpret_cast<const typename Format::Block*>(weight.data);
  auto* packed = reinterpret_cast<PackedBlock<Format>*>(out);
  for (int64_t tile = begin; tile < end; ++tile) {
    const auto* rows = matrix + tile * kTileRows * blocks;
    const auto count = static_cast<int>(std::min<int64_t>(kTileRows, weight.rows - tile * kTileRows));
    for (int64_t g = 0; g < groups; ++g) {
      PackedBlock<Format>& to = packed[tile * groups + g];
      if (count < kTileRows) std::memset(static_cast<void*>(&to), 0, sizeof to);
      HighPlane plane;
      for (int r = 0; r < count; ++r)
        pack_group<Format>(rows[r * blocks + g / kGroups], static_cast<int>(g % kGroups), r, to, plane);
      if constexpr (PackedTraits<Format>::kBits == 5) std::memcpy(to.high, plane.words, sizeof to.high);
    }
  }
}

}  // namespace kvfold
