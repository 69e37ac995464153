#include "engine/kv/dense_rows.h"

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace kvfold {
namespace {

// Elements of `kElement` bytes; rows lie `in_step` and `out_step` elements apart.
template <size_t kElement>
struct Matrix {
  const std::byte* in;
  size_t in_step;
  std::byte* out;
  size_t out_step;
  const std::byte* row_in(size_t r, size_t c) const { return in + (r * in_step + c) * kElement; }
  std::byte* row_out(size_t r, size_t c) const { return out + (r * out_step + c) * kElement; }
};

// out[c][r] = in[r][c] for r in [r0, r1), c in [c0, c1).
template <size_t kElement>
void transpose_plain(const Matrix<kElement>& m, size_t r0, size_t r1, size_t c0, size_t c1) {
  for (size_t c = c0; c < c1; ++c)
    for (size_t r = r0; r < r1; ++r) std::memcpy(m.row_out(c, r), m.row_in(r, c), kElement);
}

#if defined(__SSE2__)
// One 8 x 8 block (f32: 4 x 4), by interleaving pairs of rows, of pairs, of fours.
template <size_t kElement>
inline constexpr size_t kBlock = kElement == 4 ? 4 : 8;

__m128i load16(const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
__m128i load8(const std::byte* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
void store16(std::byte* p, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }
// The lower half to `low`, the upper to `high`.
void store8(std::byte* low, std::byte* high, __m128i x) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(low), x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(high), _mm_unpackhi_epi64(x, x));
}

void transpose_block(const Matrix<4>& m, size_t r, size_t c) {
  const __m128i a = load16(m.row_in(r, c));
  const __m128i b = load16(m.row_in(r + 1, c));
  const __m128i d = load16(m.row_in(r + 2, c));
  const __m128i e = load16(m.row_in(r + 3, c));
  const __m128i ab_low = _mm_unpacklo_epi32(a, b);
  const __m128i ab_high = _mm_unpackhi_epi32(a, b);
  const __m128i de_low = _mm_unpacklo_epi32(d, e);
  const __m128i de_high = _mm_unpackhi_epi32(d, e);
  store16(m.row_out(c, r), _mm_unpacklo_epi64(ab_low, de_low));
  store16(m.row_out(c + 1, r), _mm_unpackhi_epi64(ab_low, de_low));
  store16(m.row_out(c + 2, r), _mm_unpacklo_epi64(ab_high, de_high));
  store16(m.row_out(c + 3, r), _mm_unpackhi_epi64(ab_high, de_high));
}

void transpose_block(const Matrix<2>& m, size_t r, size_t c) {
  __m128i pairs[8];
  __m128i fours[8];
  for (size_t i = 0; i < 4; ++i) {
    const __m128i a = load16(m.row_in(r + 2 * i, c));
    const __m128i b = load16(m.row_in(r + 2 * i + 1, c));
    pairs[2 * i] = _mm_unpacklo_epi16(a, b);
    pairs[2 * i + 1] = _mm_unpackhi_epi16(a, b);
  }
  for (size_t i = 0; i < 8; i += 4)
    for (size_t half = 0; half < 2; ++half) {
      fours[i + 2 * half] = _mm_unpacklo_epi32(pairs[i + half], pairs[i + 2 + half]);
      fours[i + 2 * half + 1] = _mm_unpackhi_epi32(pairs[i + half], pairs[i + 2 + half]);
    }
  for (size_t i = 0; i < 4; ++i) {
    store16(m.row_out(c + 2 * i, r), _mm_unpacklo_epi64(fours[i], fours[i + 4]));
    store16(m.row_out(c + 2 * i + 1, r), _mm_unpackhi_epi64(fours[i], fours[i + 4]));
  }
}

void transpose_block(const Matrix<1>& m, size_t r, size_t c) {
  __m128i pairs[4];
  for (size_t i = 0; i < 4; ++i)
    pairs[i] = _mm_unpacklo_epi8(load8(m.row_in(r + 2 * i, c)), load8(m.row_in(r + 2 * i + 1, c)));
  const __m128i low_a = _mm_unpacklo_epi16(pairs[0], pairs[1]);
  const __m128i high_a = _mm_unpackhi_epi16(pairs[0], pairs[1]);
  const __m128i low_b = _mm_unpacklo_epi16(pairs[2], pairs[3]);
  const __m128i high_b = _mm_unpackhi_epi16(pairs[2], pairs[3]);
  store8(m.row_out(c, r), m.row_out(c + 1, r), _mm_unpacklo_epi32(low_a, low_b));
  store8(m.row_out(c + 2, r), m.row_out(c + 3, r), _mm_unpackhi_epi32(low_a, low_b));
  store8(m.row_out(c + 4, r), m.row_out(c + 5, r), _mm_unpacklo_epi32(high_a, high_b));
  store8(m.row_out(c + 6, r), m.row_out(c + 7, r), _mm_unpackhi_epi32(high_a, high_b));
}
#endif

// out[c][r] = in[r][c] for all of [rows, columns].
template <size_t kElement>
void transpose(const Matrix<kElement>& m, size_t rows, size_t columns) {
  size_t whole_rows = 0;
  size_t whole_columns = 0;
#if defined(__SSE2__)
  constexpr size_t kSide = kBlock<kElement>;
  whole_rows = rows / kSide * kSide;
  whole_columns = columns / kSide * kSide;
  for (size_t r = 0; r < whole_rows; r += kSide)
    for (size_t c = 0; c < whole_columns; c += kSide) transpose_block(m, r, c);
#endif
  transpose_plain(m, 0, whole_rows, whole_columns, columns);
  transpose_plain(m, whole_rows, rows, 0, columns);
}

// Rows first .. first + count - 1 of a page's block of [32 rows, columns], from or to dense rows: keys lie by
// column in a page, values by row, as kv_index and kv_scale_index say.
template <size_t kElement>
void block_to_dense(Part part, int columns, const std::byte* block, int first, int count, std::byte* dense) {
  const auto n = static_cast<size_t>(columns);
  if (part == Part::kValue) {
    std::memcpy(dense, block + first * n * kElement, count * n * kElement);
  } else {
    transpose<kElement>({block + first * kElement, kPageRows, dense, n}, n, static_cast<size_t>(count));
  }
}
template <size_t kElement>
void dense_to_block(Part part, int columns, const std::byte* dense, std::byte* block, int first, int count) {
  const auto n = static_cast<size_t>(columns);
  if (part == Part::kValue) {
    std::memcpy(block + first * n * kElement, dense, count * n * kElement);
  } else {
    transpose<kElement>({dense, n, block + first * kElement, kPageRows}, static_cast<size_t>(count), n);
  }
}

size_t scales_offset(int head_dim) { return static_cast<size_t>(head_dim) * kPageRows; }

}  // namespace

void page_to_dense(CacheType type, Part part, int head_dim, const std::byte* page, int first, int count,
                   std::byte* elements, std::byte* scales) {
  switch (type) {
    case CacheType::kF16:
      return block_to_dense<2>(part, head_dim, page, first, count, elements);
    case CacheType::kF32:
      return block_to_dense<4>(part, head_dim, page, first, count, elements);
    case CacheType::kQ8:
      break;
  }
  block_to_dense<1>(part, head_dim, page, first, count, elements);
  block_to_dense<4>(part, kv_scale_groups(head_dim), page + scales_offset(head_dim), first, count, scales);
}

void dense_to_page(CacheType type, Part part, int head_dim, const std::byte* elements,
                   const std::byte* scales, std::byte* page, int first, int count) {
  switch (type) {
    case CacheType::kF16:
      return dense_to_block<2>(part, head_dim, elements, page, first, count);
    case CacheType::kF32:
      return dense_to_block<4>(part, head_dim, elements, page, first, count);
    case CacheType::kQ8:
      break;
  }
  dense_to_block<1>(part, head_dim, elements, page, first, count);
  dense_to_block<4>(part, kv_scale_groups(head_dim), scales, page + scales_offset(head_dim), first, count);
}

}  // namespace kvfold
