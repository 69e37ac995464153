// Integer matrix products for AVX2, over weights repacked as packed.h says. A tile's 16 rows are taken as two
// halves of 8. Built once more where vectors of 8 have dot products of bytes (AVX-VNNI): the same integers by
// fewer instructions.
#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/packed.h"

#if defined(__AVXVNNI__)
namespace kvfold::avx2_vnni {
using namespace avx2;
#else
namespace kvfold::avx2 {
#endif
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

#if defined(__AVXVNNI__)
  // Integer dot products of vectors [kFirst, kLast).
  template <int kFirst, int kLast>
  KVFOLD_INLINE __m256i dot(const ActivationGroup::Row& x, __m256i sum) const {
    for (int j = kFirst; j < kLast; ++j) {
      int32_t four;
      std::memcpy(&four, x.q + 4 * j, sizeof four);
      const __m256i activations = _mm256_set1_epi32(four);
      if constexpr (Traits::kBits == 8)
        sum = _mm256_dpbusd_avx_epi32(sum, _mm256_abs_epi8(q[j]), _mm256_sign_epi8(activations, q[j]));
      else
        sum = _mm256_dpbusd_avx_epi32(sum, q[j], activations);
    }
    return sum;
  }
#else
  // Products of four columns of the 8 rows, added up in pairs to 16 bits.
  KVFOLD_INLINE __m256i pairs(const ActivationGroup::Row& x, int j) const {
    int32_t four;
    std::memcpy(&four, x.q + 4 * j, sizeof four);
    const __m256i activations = _mm256_set1_epi32(four);
    if constexpr (Traits::kBits == 8)
      return _mm256_maddubs_epi16(_mm256_abs_epi8(q[j]), _mm256_sign_epi8(activations, q[j]));
    return _mm256_maddubs_epi16(q[j], activations);
  }

  // Vectors whose 16-bit sums cannot overflow: each is at most 2 * 127 * (2^bits - 1), and 2 * 127 * 128 for
  // 8 bits.
  static constexpr int kChain = Traits::kBits == 4 ? 8 : Traits::kBits == 5 ? 4 : Traits::kBits == 6 ? 2 : 1;

  // Integer dot products of vectors [kFirst, kLast).
  template <int kFirst, int kLast>
  KVFOLD_INLINE __m256i dot(const ActivationGroup::Row& x, __m256i sum) const {
    constexpr int kStep = std::min(kChain, kLast - kFirst);
    for (int j = kFirst; j < kLast; j += kStep) {
      __m256i chain = pairs(x, j);
      for (int k = 1; k < kStep; ++k) chain = _mm256_add_epi16(chain, pairs(x, j + k));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(chain, _mm256_set1_epi16(1)));
    }
    return sum;
  }
#endif
  // What the offset of unsigned weights adds to these.
  KVFOLD_INLINE static __m256i without_offset(int minus_sum) {
    if constexpr (Traits::kBits == 8 || Traits::kOffset == 0) return _mm256_setzero_si256();
    return _mm256_set1_epi32(Traits::kOffset * minus_sum);
  }
  // All of a group.
  KVFOLD_INLINE __m256i dot_group(const ActivationGroup::Row& x) const {
    if constexpr (Format::kHasSubScales)
      return _mm256_add_epi32(
          _mm256_mullo_epi32(dot<0, 4>(x, without_offset(x.minus_sum - x.minus_last)), sub[0]),
          _mm256_mullo_epi32(dot<4, 8>(x, without_offset(x.minus_last)), sub[1]));
    return dot<0, 8>(x, without_offset(x.minus_sum));
  }

  KVFOLD_INLINE __m256 add_group(__m256 acc, const ActivationGroup::Row& x) const {
    const __m256 isum = _mm256_cvtepi32_ps(dot_group(x));
    acc = _mm256_fmadd_ps(_mm256_mul_ps(isum, _mm256_set1_ps(x.scale)), scale, acc);
    if constexpr (Format::kHasMin) acc = _mm256_fmadd_ps(_mm256_set1_ps(x.sum), min, acc);
    return acc;
  }
};

// Asks memory for weights ahead of the block being multiplied: without it, loads that wait for memory stop
// what would be multiplied meanwhile.
template <class Block>
KVFOLD_INLINE void ask_ahead(const Block* block) {
  constexpr size_t kAhead = 2048;
  for (size_t line = 0; line < sizeof(Block); line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(block) + kAhead + line, _MM_HINT_T0);
}

// A tile of weights against one row: both halves of a block at once, while it is in the first cache.
template <class Format>
[[gnu::noinline]] void tile_of_one(const PackedBlock<Format>* blocks, const ActivationGroup* panel, int first,
                                   int groups, float* y, int outputs) {
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    ask_ahead(blocks + g);
    low = LoadedBlock<Format>(blocks[g], 0).add_group(low, panel[g].rows[first]);
    high = LoadedBlock<Format>(blocks[g], 1).add_group(high, panel[g].rows[first]);
  }
  _mm256_maskstore_ps(y, first_lanes(outputs), low);
  if (outputs > kHalf) _mm256_maskstore_ps(y + kHalf, first_lanes(outputs - kHalf), high);
}

// Half a tile of weights against M rows of a panel from `first` on, all sums in registers. (The other half
// would find no room in them.)
template <class Format, int M>
[[gnu::noinline]] void half_tile(const PackedBlock<Format>* blocks, int half, const ActivationGroup* panel,
                                 int first, int groups, int rows, float* y, int64_t y_stride,
                                 __m256i outputs) {
  __m256 acc[M];
  for (int t = 0; t < M; ++t) acc[t] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    if (half == 0) ask_ahead(blocks + g);
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
  for (int64_t i = begin; i < end; ++i) {
    const PackedBlock<Format>* blocks = packed + i * x.groups;
    const auto outputs = static_cast<int>(std::min<int64_t>(kTileRows, weight.rows - i * kTileRows));
    constexpr int kMost = 4;
    for (int row = 0; row < rows; row += kMost) {
      const ActivationGroup* panel = x.data + static_cast<int64_t>(row / kPanelRows) * x.groups;
      float* to = y + row * y_stride + i * kTileRows;
      if (rows - row == 1) {
        tile_of_one<Format>(blocks, panel, row % kPanelRows, x.groups, to, outputs);
        continue;
      }
      for (int half = 0; half * kHalf < outputs; ++half)
        half_tile<Format, kMost>(blocks, half, panel, row % kPanelRows, x.groups, rows - row,
                                 to + half * kHalf, y_stride, first_lanes(outputs - half * kHalf));
    }
  }
}

}  // namespace

void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride) {
  visit_quantized_format(
      weight.type, [&](auto format) { tiles<decltype(format)>(weight, begin, end, x, rows, y, y_stride); });
}

#if !defined(__AVXVNNI__)
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
#endif

#if defined(__AVXVNNI__)
}  // namespace kvfold::avx2_vnni
#else
}  // namespace kvfold::avx2
#endif
