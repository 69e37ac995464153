// Weights as the CUDA kernels read them: repacked once, when they are uploaded, so that every load of a warp
// is one contiguous piece of memory and no byte is read that an output does not need.
//
// Rows are taken in tiles of 8. A tile holds, for each group of 32 columns in turn, its 8 rows side by side.
// A warp reads four groups of a tile at once: lane 8 g + r takes row r of the g-th group, 16 bytes of
// integers (twice that for 8-bit formats), so that a load is 512 contiguous bytes. What else a format has
// lies in planes of its own, in the same order:
//   integers  16-byte pieces. 4-bit: word i holds columns 4i .. 4i + 3 in its low halves and 16 columns on in
//   its
//             high ones. 8-bit: columns 0-15 of all 8 rows, then columns 16-31.
//   high      the bits above the fourth. One: bit 8b + i of a word is of column 4i + b. Two: bits 8b + 2i of
//   the
//             first word are of column 4i + b, of the second word 16 columns on.
//   scales    of each group: f16 scale, or f16 scale and min; K-quants: 6-bit scale and min, a byte each;
//   Q6_K: the
//             int8 factors of the half groups.
//   supers    K-quants: the f16 scales of each 256 columns.
// Weights that are floats: a lane takes row l / 4 and, of each group, columns 4c .. 4c + 3 and 16 columns on,
// c = l % 4, which is how the 16 lanes of dot16 (kernels/cpu/cpu.h) are dealt out to four threads.
#pragma once

#include <cstddef>

#include "kernels/formats/all.h"
#include "kernels/formats/formats.h"
#include "kernels/views.h"

namespace kvfold::cuda {

inline constexpr int kTileRows = 8;

// What the planes hold of one row and one group (supers: of one row and 256 columns), in bytes.
template <class Format>
struct Planes;
template <>
struct Planes<Q4_0> {
  static constexpr int kIntegers = 16, kHigh = 0, kScales = 2, kSupers = 0, kOffset = 8;
};
template <>
struct Planes<Q4_1> {
  static constexpr int kIntegers = 16, kHigh = 0, kScales = 4, kSupers = 0, kOffset = 0;
};
template <>
struct Planes<Q5_0> {
  static constexpr int kIntegers = 16, kHigh = 4, kScales = 2, kSupers = 0, kOffset = 16;
};
template <>
struct Planes<Q5_1> {
  static constexpr int kIntegers = 16, kHigh = 4, kScales = 4, kSupers = 0, kOffset = 0;
};
template <>
struct Planes<Q8_0> {
  static constexpr int kIntegers = 32, kHigh = 0, kScales = 2, kSupers = 0, kOffset = 0;
};
template <>
struct Planes<Q4_K> {
  static constexpr int kIntegers = 16, kHigh = 0, kScales = 2, kSupers = 4, kOffset = 0;
};
template <>
struct Planes<Q5_K> {
  static constexpr int kIntegers = 16, kHigh = 4, kScales = 2, kSupers = 4, kOffset = 0;
};
template <>
struct Planes<Q6_K> {
  static constexpr int kIntegers = 16, kHigh = 8, kScales = 2, kSupers = 2, kOffset = 32;
};
template <>
struct Planes<F32> {
  static constexpr int kIntegers = 128, kHigh = 0, kScales = 0, kSupers = 0, kOffset = 0;
};
template <>
struct Planes<F16> {
  static constexpr int kIntegers = 64, kHigh = 0, kScales = 0, kSupers = 0, kOffset = 0;
};
template <>
struct Planes<BF16> {
  static constexpr int kIntegers = 64, kHigh = 0, kScales = 0, kSupers = 0, kOffset = 0;
};

// A packed matrix in device memory.
struct PackedView {
  WeightType type = WeightType::kF32;
  int rows = 0;
  int columns = 0;
  int groups = 0;  // ceil(columns / 32)
  const uint8_t* integers = nullptr;
  const uint8_t* high = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* supers = nullptr;
};

// Where the planes of a matrix lie in one allocation: every plane begins at a multiple of 256.
struct PackedLayout {
  size_t high, scales, supers, bytes;
};
PackedLayout packed_layout(WeightType type, int64_t rows, int64_t columns);
PackedView packed_view(WeightType type, int64_t rows, int64_t columns, const std::byte* memory);
// Packs the tiles [begin, end) of a matrix to `out`, which holds packed_layout().bytes, zeroed before the
// first.
void pack(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out);
inline int64_t packed_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

}  // namespace kvfold::cuda
