// Integer matrix products for AVX-512 with VNNI, over weights repacked as packed.h says.
#include <algorithm>

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/packed.h"

namespace kvfold::avx512 {
namespace {

__m512 load_halves(const uint16_t* halves) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)));
}
__m512 load_factors(const uint8_t* factors) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(factors))));
}

// A block's weights in registers: 8 vectors of unsigned bytes, and the scales.
template <class Format>
struct LoadedBlock {
  using Traits = PackedTraits<Format>;
  __m512i q[8];
  __m512 scale, min;
  __m512i sub[2];

  KVFOLD_INLINE explicit LoadedBlock(const PackedBlock<Format>& block) {
    load_integers(block);
    scale = load_halves(block.scale);
    if constexpr (Traits::kFactors) scale = _mm512_mul_ps(scale, load_factors(block.factor));
    if constexpr (Format::kHasMin) min = load_halves(block.min);
    if constexpr (Traits::kFactors)
      min = _mm512_xor_ps(_mm512_mul_ps(min, load_factors(block.min_factor)), _mm512_set1_ps(-0.0F));
    if constexpr (Format::kHasSubScales)
      for (int half = 0; half < 2; ++half)
        sub[half] = _mm512_cvtepi8_epi32(
            _mm_load_si128(reinterpret_cast<const __m128i*>(block.sub + kTileRows * half)));
  }

  KVFOLD_INLINE void load_integers(const PackedBlock<Format>& block) {
    if constexpr (Traits::kBits == 8) {
      for (int j = 0; j < 8; ++j) q[j] = _mm512_loadu_si512(block.q + 64 * j);
      return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
      const __m512i pairs = _mm512_loadu_si512(block.q + 64 * j);
      q[j] = _mm512_and_si512(pairs, low);
      q[j + 4] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
    }
    if constexpr (Traits::kBits == 5) {
      for (int j = 0; j < 8; ++j) {
        __mmask64 bits;
        std::memcpy(&bits, block.high + 8 * j, sizeof bits);
        q[j] = _mm512_mask_add_epi8(q[j], bits, q[j], _mm512_set1_epi8(16));
      }
    }
    if constexpr (Traits::kBits == 6) {
      const __m512i two = _mm512_set1_epi8(0x30);
      for (int half = 0; half < 2; ++half) {
        const __m512i high = _mm512_loadu_si512(block.high + 64 * half);
        __m512i* to = q + 4 * half;
        to[0] = _mm512_or_si512(to[0], _mm512_and_si512(_mm512_slli_epi16(high, 4), two));
        to[1] = _mm512_or_si512(to[1], _mm512_and_si512(_mm512_slli_epi16(high, 2), two));
        to[2] = _mm512_or_si512(to[2], _mm512_and_si512(high, two));
        to[3] = _mm512_or_si512(to[3], _mm512_and_si512(_mm512_srli_epi16(high, 2), two));
      }
    }
  }

  // Integer dot products of the 16 rows with one row's group of activations. The offset that made the weights
  // unsigned is taken off again by where the sums start.
  KVFOLD_INLINE __m512i dot(const ActivationGroup::Row& x) const {
    const auto quad = [&](int j) {
      int32_t four;
      std::memcpy(&four, x.q + 4 * j, sizeof four);
      return _mm512_set1_epi32(four);
    };
    const auto times_offset = [](int32_t minus_sum) {
      if constexpr (Traits::kOffset == 0) return _mm512_setzero_si512();
      constexpr int kShift = __builtin_ctz(Traits::kOffset | 1 << 8);
      return _mm512_slli_epi32(_mm512_set1_epi32(minus_sum), kShift);
    };
    __m512i first = times_offset(x.minus_sum);
    __m512i second = _mm512_setzero_si512();
    if constexpr (Format::kHasSubScales) {
      second = times_offset(x.minus_last);
      first = _mm512_sub_epi32(first, second);
    }
    for (int j = 0; j < 4; ++j) {
      first = _mm512_dpbusd_epi32(first, q[j], quad(j));
      second = _mm512_dpbusd_epi32(second, q[j + 4], quad(j + 4));
    }
    if constexpr (Format::kHasSubScales)
      return _mm512_add_epi32(_mm512_mullo_epi32(first, sub[0]), _mm512_mullo_epi32(second, sub[1]));
    return _mm512_add_epi32(first, second);
  }

  KVFOLD_INLINE __m512 add_group(__m512 acc, const ActivationGroup::Row& x) const {
    const __m512 isum = _mm512_cvtepi32_ps(dot(x));
    acc = _mm512_fmadd_ps(_mm512_mul_ps(isum, _mm512_set1_ps(x.scale)), scale, acc);
    if constexpr (Format::kHasMin) acc = _mm512_fmadd_ps(_mm512_set1_ps(x.sum), min, acc);
    return acc;
  }
};

// Asks memory for weights ahead of the block being multiplied: the processor's own prefetching does not keep
// up with one row, and many rows take blocks so slowly that they must be asked for long before.
template <class Block>
KVFOLD_INLINE void ask_ahead(const Block* block) {
  constexpr size_t kAhead = 4096;
  for (size_t line = 0; line < sizeof(Block); line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(block) + kAhead + line, _MM_HINT_T0);
}

// One tile of weights against M rows of a panel (16: of two panels), all sums in registers.
template <class Format, int M>
void tile(const PackedBlock<Format>* blocks, const ActivationGroup* panel, int groups, int rows, float* y,
          int64_t y_stride, __mmask16 outputs) {
  __m512 acc[M];
  for (int t = 0; t < M; ++t) acc[t] = _mm512_setzero_ps();
  const ActivationGroup* next_panel = panel + groups;
  for (int g = 0; g < groups; ++g) {
    ask_ahead(blocks + g);
    const LoadedBlock<Format> w(blocks[g]);
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t)
      acc[t] = w.add_group(acc[t], (t < kPanelRows ? panel : next_panel)[g].rows[t % kPanelRows]);
  }
  for (int t = 0; t < M; ++t)
    if (t < rows) _mm512_mask_storeu_ps(y + t * y_stride, outputs, acc[t]);
}

template <class Format>
void tiles(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows, float* y,
           int64_t y_stride) {
  const auto* packed = reinterpret_cast<const PackedBlock<Format>*>(weight.data);
  for (int64_t t = begin; t < end; ++t) {
    const PackedBlock<Format>* blocks = packed + t * x.groups;
    const __mmask16 outputs =
        first_lanes(static_cast<int>(std::min<int64_t>(kTileRows, weight.rows - t * kTileRows)));
    for (int row = 0; row < rows;) {
      const ActivationGroup* panel = x.data + static_cast<int64_t>(row / kPanelRows) * x.groups;
      float* to = y + row * y_stride + t * kTileRows;
      const int left = rows - row;
      // Whole panels where there are; rows past the last are computed and not stored.
      const auto with = [&](auto count) {
        tile<Format, count()>(blocks, panel, x.groups, left, to, y_stride, outputs);
        return count();
      };
      if (left > kPanelRows) {
        row += with(std::integral_constant<int, 16>());
      } else if (left > 4) {
        row += with(std::integral_constant<int, 8>());
      } else if (left > 2) {
        row += with(std::integral_constant<int, 4>());
      } else if (left > 1) {
        row += with(std::integral_constant<int, 2>());
      } else {
        row += with(std::integral_constant<int, 1>());
      }
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

}  // namespace kvfold::avx512
