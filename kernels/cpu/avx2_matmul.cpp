// Integer matrix products for AVX2, over weights repacked as packed.h says. A tile's 16 rows are taken as two
// halves of 8.
#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/packed.h"

namespace kvfold::avx2 {
namespace {

constexpr int kHalf = kTileRows / 2;

__m256 load_halves(const uint16_t* halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}
__m256 load_factors(const uint8_t* factors) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(factors))));
}

// 32 bits as 32 bytes: `value` where the bit is set.
KVFOLD_INLINE __m256i spread_bits(const uint8_t* bits, char value) {
  int32_t word;
  std::memcpy(&word, bits, sizeof word);
  const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2,
                                         2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201U));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), which);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), _mm256_set1_epi8(value));
}

// A block's weights of 8 rows in registers: 8 vectors of bytes, unsigned, or, of 8 bits, signed.
template <class Format>
struct LoadedBlock {
  using Traits = PackedTraits<Format>;
  __m256i q[8];
  __m256 scale, min;
  __m256i sub[2];

  KVFOLD_INLINE LoadedBlock(const PackedBlock<Format>& block, int half) {
    load_integers(block, half);
    scale = load_halves(block.scale + kHalf * half);
    if constexpr (Traits::kFactors) scale = _mm256_mul_ps(scale, load_factors(block.factor + kHalf * half));
    if constexpr (Format::kHasMin) min = load_halves(block.min + kHalf * half);
    if constexpr (Traits::kFactors)
      min = _mm256_xor_ps(_mm256_mul_ps(min, load_factors(block.min_factor + kHalf * half)),
                          _mm256_set1_ps(-0.0F));
    if constexpr (Format::kHasSubScales)
      for (int i = 0; i < 2; ++i)
        sub[i] = _mm256_cvtepi8_epi32(
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block.sub + kTileRows * i + kHalf * half)));
  }

  KVFOLD_INLINE static __m256i load(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  }

  KVFOLD_INLINE void load_integers(const PackedBlock<Format>& block, int half) {
    if constexpr (Traits::kBits == 8) {
      for (int j = 0; j < 8; ++j)
        q[j] =
            _mm256_xor_si256(load(block.q + 64 * j + 32 * half), _mm256_set1_epi8(static_cast<char>(0x80)));
      return;
    }
    const __m256i low = _mm256_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
      const __m256i pairs = load(block.q + 64 * j + 32 * half);
      q[j] = _mm256_and_si256(pairs, low);
      q[j + 4] = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
    }
    if constexpr (Traits::kBits == 5)
      for (int j = 0; j < 8; ++j)
        q[j] = _mm256_or_si256(q[j], spread_bits(block.high + 8 * j + 4 * half, 16));
    if constexpr (Traits::kBits == 6) {
      const __m256i two = _mm256_set1_epi8(0x30);
      for (int i = 0; i < 2; ++i) {
        const __m256i high = load(block.high + 64 * i + 32 * half);
        __m256i* to = q + 4 * i;
        to[0] = _mm256_or_si256(to[0], _mm256_and_si256(_mm256_slli_epi16(high, 4), two));
        to[1] = _mm256_or_si256(to[1], _mm256_and_si256(_mm256_slli_epi16(high, 2), two));
        to[2] = _mm256_or_si256(to[2], _mm256_and_si256(high, two));
        to[3] = _mm256_or_si256(to[3], _mm256_and_si256(_mm256_srli_epi16(high, 2), two));
      }
    }
  }

  // Products of four columns of the 8 rows, added up in pairs to 16 bits.
  KVFOLD_INLINE __m256i pairs(const ActivationGroup::Row& x, int j) const {
    int32_t four;
    std::memcpy(&four, x.q + 4 * j, sizeof four);
    const __m256i activations = _mm256_set1_epi32(four);
    if constexpr (Traits::kBits == 8)
      return _mm256_maddubs_epi16(_mm256_abs_epi8(q[j]), _mm256_sign_epi8(activations, q[j]));
    return _mm256_maddubs_epi16(q[j], activations);
  }

  // Integer dot products of half a group, vectors 4 * i to 4 * i + 3.
  KVFOLD_INLINE __m256i dot_half(const ActivationGroup::Row& x, int i) const {
    // Vectors whose 16-bit sums cannot overflow: each is at most 2 * 127 * (2^bits - 1), and 2 * 127 * 128
    // for 8 bits.
    constexpr int kChain = Traits::kBits <= 5 ? 4 : Traits::kBits == 6 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    if constexpr (Traits::kBits != 8) sum = _mm256_set1_epi32(-Traits::kOffset * x.half_sums[i]);
    for (int j = 4 * i; j < 4 * i + 4; j += kChain) {
      __m256i chain = pairs(x, j);
      for (int k = 1; k < kChain; ++k) chain = _mm256_add_epi16(chain, pairs(x, j + k));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(chain, ones));
    }
    return sum;
  }

  KVFOLD_INLINE __m256 add_group(__m256 acc, const ActivationGroup::Row& x) const {
    __m256i first = dot_half(x, 0);
    __m256i second = dot_half(x, 1);
    if constexpr (Format::kHasSubScales) {
      first = _mm256_mullo_epi32(first, sub[0]);
      second = _mm256_mullo_epi32(second, sub[1]);
    }
    const __m256 isum = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
    acc = _mm256_fmadd_ps(_mm256_mul_ps(isum, _mm256_set1_ps(x.scale)), scale, acc);
    if constexpr (Format::kHasMin) acc = _mm256_fmadd_ps(_mm256_set1_ps(x.sum), min, acc);
    return acc;
  }
};

// Half a tile of weights against M rows of a panel from `first` on, all sums in registers.
template <class Format, int M>
void half_tile(const PackedBlock<Format>* blocks, int half, const ActivationGroup* panel, int first,
               int groups, int rows, float* y, int64_t y_stride, __m256i outputs) {
  __m256 acc[M];
  for (int t = 0; t < M; ++t) acc[t] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    const LoadedBlock<Format> w(blocks[g], half);
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) acc[t] = w.add_group(acc[t], panel[g].rows[first + t]);
  }
  for (int t = 0; t < M; ++t)
    if (t < rows) _mm256_maskstore_ps(y + t * y_stride, outputs, acc[t]);
}

template <class Format>
void tiles(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows, float* y,
           int64_t y_stride) {
  const auto* packed = reinterpret_cast<const PackedBlock<Format>*>(weight.data);
  for (int64_t i = 2 * begin; i < 2 * end; ++i) {
    const PackedBlock<Format>* blocks = packed + i / 2 * x.groups;
    const int64_t left = weight.rows - i * kHalf;
    if (left <= 0) continue;
    const __m256i outputs = first_lanes(static_cast<int>(std::min<int64_t>(kHalf, left)));
    constexpr int kMost = 4;
    for (int row = 0; row < rows; row += kMost) {
      const ActivationGroup* panel = x.data + static_cast<int64_t>(row / kPanelRows) * x.groups;
      const auto half = static_cast<int>(i % 2);
      float* to = y + row * y_stride + i * kHalf;
      if (rows - row == 1)
        half_tile<Format, 1>(blocks, half, panel, row % kPanelRows, x.groups, 1, to, y_stride, outputs);
      else
        half_tile<Format, kMost>(blocks, half, panel, row % kPanelRows, x.groups, rows - row, to, y_stride,
                                 outputs);
    }
  }
}

}  // namespace

void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride) {
  visit_quantized_format(
      weight.type, [&](auto format) { tiles<decltype(format)>(weight, begin, end, x, rows, y, y_stride); });
}

size_t packed_bytes(const MatrixView& weight) {
  size_t bytes = 0;
  visit_quantized_format(weight.type, [&](auto format) {
    bytes = static_cast<size_t>(packed_tiles(weight)) * packed_tile_bytes<decltype(format)>(weight);
  });
  return bytes;
}

void pack(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out) {
  visit_quantized_format(weight.type,
                         [&](auto format) { pack_tiles<decltype(format)>(weight, begin, end, out); });
}

}  // namespace kvfold::avx2
