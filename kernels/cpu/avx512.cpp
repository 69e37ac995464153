// Kernels for AVX-512 with VNNI. Every function here gives the bits of its plain twin in plain.cpp: the same
// sums in the same order, 16 of them side by side.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/runs.h"
#include "kernels/formats/formats.h"

namespace kvfold {

extern const CpuKernels kAvx512Kernels;

namespace {

constexpr int kLanes = 16;

__mmask16 first_lanes(int n) { return static_cast<__mmask16>(n >= kLanes ? 0xFFFF : (1U << n) - 1); }

// ---- vectors ----

float fold(__m512 lanes) {
  alignas(64) float values[kLanes];
  _mm512_store_ps(values, lanes);
  return fold16(values);
}

// exp_f32 of math.h, step by step.
__m512 exp_vector(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.3F));
  x = _mm512_min_ps(x, _mm512_set1_ps(88.3F));
  const __m512 n =
      _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341F)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375F), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4F), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4F);
  for (const float c :
       {1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
  const __m512i exponent =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0F)), _mm512_castsi512_ps(exponent));
}

__m512 dot_lanes(const float* a, const float* b, int64_t n) {
  __m512 lanes = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    lanes = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), lanes);
  if (i < n) {
    const __mmask16 rest = first_lanes(static_cast<int>(n - i));
    lanes = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(rest, a + i), _mm512_maskz_loadu_ps(rest, b + i),
                                  lanes, rest);
  }
  return lanes;
}

// ---- small operations ----

void quantize_row(const float* x, int columns, int8_t* q, float* scales, int32_t* half_sums) {
  for (int g = 0; g * kGroup < columns; ++g) {
    const int n = std::min(kGroup, columns - g * kGroup);
    const __m512 low = _mm512_maskz_loadu_ps(first_lanes(n), x + g * kGroup);
    const __m512 high = n > kLanes ? _mm512_maskz_loadu_ps(first_lanes(n - kLanes), x + g * kGroup + kLanes)
                                   : _mm512_setzero_ps();
    // The comparison's order matters for NaN only, which both forms pass over.
    const __m512 magnitude = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
    const float largest = _mm512_reduce_max_ps(magnitude);
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0F / largest : 0.0F);
    const auto round = [&](__m512 v) {
      v = _mm512_max_ps(_mm512_mul_ps(v, inverse), _mm512_set1_ps(-127.0F));
      return _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(127.0F)));
    };
    const __m512i q_low = round(low);
    const __m512i q_high = round(high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + g * kGroup), _mm512_cvtepi32_epi8(q_low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + g * kGroup + kLanes), _mm512_cvtepi32_epi8(q_high));
    scales[g] = largest / 127.0F;
    half_sums[2 * g] = _mm512_reduce_add_epi32(q_low);
    half_sums[2 * g + 1] = _mm512_reduce_add_epi32(q_high);
  }
}

void rms_norm(const float* x, const float* weight, int n, float epsilon, float* out) {
  const float scale = 1.0F / std::sqrt(fold(dot_lanes(x, x, n)) / static_cast<float>(n) + epsilon);
  for (int i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), _mm512_set1_ps(scale));
    _mm512_mask_storeu_ps(out + i, lanes, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(lanes, weight + i)));
  }
}

void swiglu(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
    const __m512 negative = _mm512_xor_ps(g, _mm512_set1_ps(-0.0F));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0F), exp_vector(negative)));
    _mm512_mask_storeu_ps(out + i, lanes, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(lanes, up + i)));
  }
}

void matmul_f32(const MatrixView& weight, int64_t begin, int64_t end, const float* x, int rows, float* y,
                int64_t y_stride, float* scratch) {
  const FormatInfo& format = format_info(weight.type);
  const int64_t row_bytes = weight.columns / format.block_elements * format.block_bytes;
  for (int64_t r = begin; r < end; ++r) {
    format.decode(weight.data + r * row_bytes, scratch, static_cast<size_t>(weight.columns));
    for (int t = 0; t < rows; ++t)
      y[t * y_stride + r] = fold(dot_lanes(scratch, x + t * weight.columns, weight.columns));
  }
}

// ---- integer products ----

__m512 load_scales(const uint16_t* scales) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
}
__m512 load_scales(const float* scales) { return _mm512_loadu_ps(scales); }

// A block's weights in registers: 8 vectors of unsigned bytes, and the scales.
template <class Format>
struct LoadedBlock {
  __m512i q[8];
  __m512 scale, min;
  __m512i sub[2];

  explicit LoadedBlock(const PackedBlock<Format>& block) {
    if constexpr (PackedTraits<Format>::kNibbles) {
      const __m512i low = _mm512_set1_epi8(15);
      for (int j = 0; j < 4; ++j) {
        const __m512i pairs = _mm512_loadu_si512(block.q + 64 * j);
        q[j] = _mm512_and_si512(pairs, low);
        q[j + 4] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
      }
    } else {
      for (int j = 0; j < 8; ++j) q[j] = _mm512_loadu_si512(block.q + 64 * j);
    }
    scale = load_scales(block.scale);
    if constexpr (Format::kHasMin) min = load_scales(block.min);
    if constexpr (Format::kHasSubScales)
      for (int half = 0; half < 2; ++half)
        sub[half] = _mm512_cvtepi8_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.sub + kTileRows * half)));
  }

  // Integer dot products of the 16 rows with one group of activations. The offset that made the weights
  // unsigned is taken off again by where the sums start.
  __m512i dot(const int8_t* x, const int32_t* half_sums) const {
    constexpr int kOffset = PackedTraits<Format>::kOffset;
    const auto quad = [&](int j) {
      int32_t four;
      std::memcpy(&four, x + 4 * j, sizeof four);
      return _mm512_set1_epi32(four);
    };
    __m512i first = _mm512_set1_epi32(-kOffset * half_sums[0]);
    __m512i second = _mm512_set1_epi32(-kOffset * half_sums[1]);
    for (int j = 0; j < 4; ++j) {
      first = _mm512_dpbusd_epi32(first, q[j], quad(j));
      second = _mm512_dpbusd_epi32(second, q[j + 4], quad(j + 4));
    }
    if constexpr (Format::kHasSubScales)
      return _mm512_add_epi32(_mm512_mullo_epi32(first, sub[0]), _mm512_mullo_epi32(second, sub[1]));
    return _mm512_add_epi32(first, second);
  }
};

// One tile of weights against M rows of activations, all sums in registers.
template <class Format, int M>
void tile(const PackedBlock<Format>* blocks, const QuantizedView& x, int row, float* y, int64_t y_stride,
          int outputs) {
  __m512 acc[M];
  for (int t = 0; t < M; ++t) acc[t] = _mm512_setzero_ps();
  const int8_t* q = x.q + static_cast<int64_t>(row) * x.groups * kGroup;
  const float* scales = x.scales + static_cast<int64_t>(row) * x.groups;
  const int32_t* sums = x.half_sums + static_cast<int64_t>(row) * x.groups * 2;
  constexpr int kAhead = 8;  // blocks: about 2.5 KB, what a core has in flight from memory
  for (int64_t g = 0; g < x.groups; ++g) {
    if constexpr (M == 1)
      for (size_t line = 0; line < sizeof(PackedBlock<Format>); line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(blocks + g + kAhead) + line, _MM_HINT_T0);
    const LoadedBlock<Format> w(blocks[g]);
    for (int t = 0; t < M; ++t) {
      const int64_t group = t * static_cast<int64_t>(x.groups) + g;
      const __m512i isum = w.dot(q + group * kGroup, sums + group * 2);
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(isum), _mm512_set1_ps(scales[group]));
      acc[t] = _mm512_fmadd_ps(scaled, w.scale, acc[t]);
      if constexpr (Format::kHasMin) {
        const float sum = scales[group] * static_cast<float>(sums[group * 2] + sums[group * 2 + 1]);
        acc[t] = _mm512_fmadd_ps(_mm512_set1_ps(sum), w.min, acc[t]);
      }
    }
  }
  for (int t = 0; t < M; ++t) _mm512_mask_storeu_ps(y + t * y_stride, first_lanes(outputs), acc[t]);
}

template <class Format>
void matmul_format(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
                   float* y, int64_t y_stride) {
  const auto* packed = reinterpret_cast<const PackedBlock<Format>*>(weight.data);
  constexpr int kMost = 8;
  for (int64_t t = begin; t < end; ++t) {
    const PackedBlock<Format>* blocks = packed + t * x.groups;
    const int outputs = static_cast<int>(std::min<int64_t>(kTileRows, weight.rows - t * kTileRows));
    int row = 0;
    for (; row + kMost <= rows; row += kMost)
      tile<Format, kMost>(blocks, x, row, y + row * y_stride + t * kTileRows, y_stride, outputs);
    for (; row + 4 <= rows; row += 4)
      tile<Format, 4>(blocks, x, row, y + row * y_stride + t * kTileRows, y_stride, outputs);
    for (; row < rows; ++row)
      tile<Format, 1>(blocks, x, row, y + row * y_stride + t * kTileRows, y_stride, outputs);
  }
}

void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride) {
  visit_quantized_format(weight.type, [&](auto format) {
    matmul_format<decltype(format)>(weight, begin, end, x, rows, y, y_stride);
  });
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

// ---- attention ----

// 16 keys of one dimension, or 16 dimensions of one value, as f32; lanes outside the mask are 0.
template <CacheType type>
struct PageReader {
  const std::byte* page;
  int head_dim;

  __m512 load(Part part, int row, int dimension, __mmask16 lanes) const {
    const size_t index = kv_index(part, head_dim, row, dimension);
    if constexpr (type == CacheType::kF16) {
      return _mm512_cvtph_ps(
          _mm256_maskz_loadu_epi16(lanes, reinterpret_cast<const uint16_t*>(page) + index));
    } else if constexpr (type == CacheType::kF32) {
      return _mm512_maskz_loadu_ps(lanes, reinterpret_cast<const float*>(page) + index);
    } else {
      const auto* scales = reinterpret_cast<const float*>(page + static_cast<size_t>(head_dim) * kPageRows) +
                           kv_scale_index(part, head_dim, row, dimension / 32);
      const __m512 q = _mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, reinterpret_cast<const int8_t*>(page) + index)));
      // Keys: a scale for each row. Values: 16 dimensions are of one group, as groups are of 32.
      return _mm512_mul_ps(
          q, part == Part::kKey ? _mm512_maskz_loadu_ps(lanes, scales) : _mm512_set1_ps(*scales));
    }
  }
};

constexpr int kMostHeads = 8;  // query heads whose scores are kept in registers together

// Scores of up to 16 rows of a run for heads [0, heads), added up pair by pair.
template <CacheType type>
void score_rows(const AttentionBlock& block, const Run& run, int first, const float* turned, int heads,
                float* scores) {
  const int head_dim = block.pages.head_dim;
  const RopeView& rope = block.rope;
  const PageReader<type> page{run.page, head_dim};
  const __mmask16 lanes = first_lanes(run.count - first);
  const int row = run.row + first;
  __m512 sum[kMostHeads];
  for (int h = 0; h < heads; ++h) sum[h] = _mm512_setzero_ps();
  const auto accumulate = [&](__m512 k, int dimension) {
    for (int h = 0; h < heads; ++h)
      sum[h] = _mm512_fmadd_ps(_mm512_set1_ps(turned[h * head_dim + dimension]), k, sum[h]);
  };
  for (int i = 0; i < rope.pairs; ++i) {
    const int a = rope.interleaved ? 2 * i : i;
    const int b = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
    const __m512 c = _mm512_maskz_loadu_ps(lanes, rope.key_cos + i * kPageRows + run.offset + first);
    const __m512 s = _mm512_maskz_loadu_ps(lanes, rope.key_sin + i * kPageRows + run.offset + first);
    const __m512 ka = page.load(Part::kKey, row, a, lanes);
    const __m512 kb = page.load(Part::kKey, row, b, lanes);
    accumulate(_mm512_fmsub_ps(ka, c, _mm512_mul_ps(kb, s)), a);
    accumulate(_mm512_fmadd_ps(ka, s, _mm512_mul_ps(kb, c)), b);
  }
  for (int d = 2 * rope.pairs; d < head_dim; ++d) accumulate(page.load(Part::kKey, row, d, lanes), d);
  for (int h = 0; h < heads; ++h) _mm512_mask_storeu_ps(scores + h * kAttentionBlock + first, lanes, sum[h]);
}

// scores[heads][kAttentionBlock] become weights; largest and sum go to `out`.
void soften(int heads, int rows, float* scores, const AttentionPartial& out) {
  for (int h = 0; h < heads; ++h) {
    float* s = scores + h * kAttentionBlock;
    __m512 most = _mm512_set1_ps(s[0]);
    for (int r = 0; r < rows; r += kLanes) {
      const __mmask16 lanes = first_lanes(rows - r);
      most = _mm512_mask_max_ps(most, lanes, most, _mm512_maskz_loadu_ps(lanes, s + r));
    }
    const float largest = _mm512_reduce_max_ps(most);
    __m512 sum = _mm512_setzero_ps();
    for (int r = 0; r < rows; r += kLanes) {
      const __mmask16 lanes = first_lanes(rows - r);
      const __m512 weight =
          exp_vector(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, s + r), _mm512_set1_ps(largest)));
      _mm512_mask_storeu_ps(s + r, lanes, weight);
      sum = _mm512_mask_add_ps(sum, lanes, sum, weight);
    }
    out.largest[h] = largest;
    out.sums[h] = fold(sum);
  }
}

template <CacheType type>
void add_values(const AttentionBlock& block, const float* weights, int heads, float* values) {
  const int head_dim = block.pages.head_dim;
  for (int d = 0; d < head_dim; d += kLanes) {
    const __mmask16 lanes = first_lanes(head_dim - d);
    __m512 sum[kMostHeads];
    for (int h = 0; h < heads; ++h) sum[h] = _mm512_setzero_ps();
    for_each_span(block, Part::kValue, [&](const std::byte* bytes, int row, int count, int index) {
      const PageReader<type> page{bytes, head_dim};
      for (int r = 0; r < count; ++r) {
        const __m512 v = page.load(Part::kValue, row + r, d, lanes);
        for (int h = 0; h < heads; ++h)
          sum[h] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h * kAttentionBlock + index + r]), v, sum[h]);
      }
    });
    for (int h = 0; h < heads; ++h) _mm512_mask_storeu_ps(values + h * head_dim + d, lanes, sum[h]);
  }
}

// Queries of heads [0, heads) with heads <= kMostHeads.
template <CacheType type>
void attend_heads(const AttentionBlock& block, const float* queries, int heads, const AttentionPartial& out) {
  alignas(64) float scores[kMostHeads * kAttentionBlock];
  for_each_turned_run(block, queries, heads, [&](const Run& run, int index, const float* turned) {
    for (int first = 0; first < run.count; first += kLanes)
      score_rows<type>(block, run, first, turned, heads, scores + index);
  });
  soften(heads, block.end - block.begin, scores, out);
  add_values<type>(block, scores, heads, out.values);
}

void attention_block(const AttentionBlock& block, const AttentionPartial& out) {
  const int head_dim = block.pages.head_dim;
  for (int h = 0; h < block.heads; h += kMostHeads) {
    const int heads = std::min(kMostHeads, block.heads - h);
    const float* queries = block.queries + h * head_dim;
    const AttentionPartial part{out.largest + h, out.sums + h, out.values + h * head_dim};
    switch (block.pages.type) {
      case CacheType::kF16:
        attend_heads<CacheType::kF16>(block, queries, heads, part);
        break;
      case CacheType::kF32:
        attend_heads<CacheType::kF32>(block, queries, heads, part);
        break;
      case CacheType::kQ8:
        attend_heads<CacheType::kQ8>(block, queries, heads, part);
        break;
    }
  }
}

void attention_combine(const AttentionPartial& parts, int blocks, int heads, int head_dim, float* out) {
  for (int h = 0; h < heads; ++h) {
    float largest = parts.largest[h];
    for (int b = 1; b < blocks; ++b) largest = std::max(largest, parts.largest[b * heads + h]);
    float sum = 0;
    float* values = out + static_cast<size_t>(h) * head_dim;
    std::fill_n(values, head_dim, 0.0F);
    for (int b = 0; b < blocks; ++b) {
      const float weight = exp_f32(parts.largest[b * heads + h] - largest);
      const float* part = parts.values + (static_cast<size_t>(b) * heads + h) * head_dim;
      sum = std::fma(weight, parts.sums[b * heads + h], sum);
      for (int d = 0; d < head_dim; ++d) values[d] = std::fma(weight, part[d], values[d]);
    }
    const float inverse = 1.0F / sum;
    for (int d = 0; d < head_dim; ++d) values[d] *= inverse;
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const CpuKernels kAvx512Kernels = {
    .name = "avx512",
    .supported = supported,
    .row_unit = kTileRows,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .quantize_row = quantize_row,
    .matmul_q8 = matmul_q8,
    .matmul_f32 = matmul_f32,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .attention_block = attention_block,
    .attention_combine = attention_combine,
};

}  // namespace kvfold
