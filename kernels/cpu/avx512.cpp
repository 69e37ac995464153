// Kernels for AVX-512 with VNNI: the table, and its small operations. Every function gives the bits of its
// plain twin in plain.cpp: the same sums in the same order, 16 of them side by side.
#include "kernels/cpu/avx512.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/packed.h"
#include "kernels/cpu/panels.h"
#include "kernels/formats/formats.h"

namespace kvfold {

extern const CpuKernels kAvx512Kernels;

namespace {

using namespace avx512;

// ---- small operations ----

KVFOLD_INLINE void quantize_group(const float* x, int n, ActivationGroup::Row& out) {
  const __m512 low = _mm512_maskz_loadu_ps(first_lanes(n), x);
  const __m512 high =
      n > kLanes ? _mm512_maskz_loadu_ps(first_lanes(n - kLanes), x + kLanes) : _mm512_setzero_ps();
  // The comparison's order matters for NaN only, which both forms pass over.
  const __m512 magnitude = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
  const float largest = _mm512_reduce_max_ps(magnitude);
  const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0F / largest : 0.0F);
  const auto round = [&](__m512 v) {
    v = _mm512_max_ps(_mm512_mul_ps(v, inverse), _mm512_set1_ps(-127.0F));
    return _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(127.0F)));
  };
  const __m256i q = _mm256_set_m128i(_mm512_cvtepi32_epi8(round(high)), _mm512_cvtepi32_epi8(round(low)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q), q);
  // Sums of 8 bytes each, as unsigned ones with 128 added.
  const __m256i sums =
      _mm256_sad_epu8(_mm256_xor_si256(q, _mm256_set1_epi8(static_cast<char>(0x80))), _mm256_setzero_si256());
  const auto half_sum = [](__m128i eights) {
    return _mm_cvtsi128_si32(eights) + _mm_extract_epi32(eights, 2) - 16 * 128;
  };
  const int32_t first = half_sum(_mm256_castsi256_si128(sums));
  const int32_t second = half_sum(_mm256_extracti128_si256(sums, 1));
  out.scale = largest / 127.0F;
  out.minus_sum = -first - second;
  out.minus_last = -second;
  out.sum = out.scale * static_cast<float>(first + second);
}

void quantize(const float* x, int rows, int columns, ActivationGroup* panels) {
  for_each_group(x, rows, columns, panels,
                 [](const float* group, int n, ActivationGroup::Row& to) { quantize_group(group, n, to); });
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

void swiglu_gradient(const float* out_gradient, int n, float* gate, float* up) {
  const __m512 one = _mm512_set1_ps(1.0F);
  for (int i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
    const __m512 out = _mm512_maskz_loadu_ps(lanes, out_gradient + i);
    const __m512 negative = _mm512_xor_ps(g, _mm512_set1_ps(-0.0F));
    const __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, exp_vector(negative)));
    const __m512 slope = _mm512_mul_ps(s, _mm512_add_ps(one, _mm512_mul_ps(g, _mm512_sub_ps(one, s))));
    const __m512 to_gate = _mm512_mul_ps(_mm512_mul_ps(out, _mm512_maskz_loadu_ps(lanes, up + i)), slope);
    _mm512_mask_storeu_ps(gate + i, lanes, to_gate);
    _mm512_mask_storeu_ps(up + i, lanes, _mm512_mul_ps(out, _mm512_mul_ps(g, s)));
  }
}

float softmax(float* x, int64_t n) {
  __m512 most = _mm512_set1_ps(x[0]);
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(static_cast<int>(std::min<int64_t>(n - i, kLanes)));
    most = _mm512_mask_max_ps(most, lanes, most, _mm512_maskz_loadu_ps(lanes, x + i));
  }
  const float largest = _mm512_reduce_max_ps(most);
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(static_cast<int>(std::min<int64_t>(n - i, kLanes)));
    const __m512 e = exp_vector(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + i), _mm512_set1_ps(largest)));
    sums = _mm512_mask_add_ps(sums, lanes, sums, e);
    _mm512_mask_storeu_ps(x + i, lanes, e);
  }
  const float sum = fold(sums);
  const __m512 inverse = _mm512_set1_ps(1.0F / sum);
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(static_cast<int>(std::min<int64_t>(n - i, kLanes)));
    _mm512_mask_storeu_ps(x + i, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse));
  }
  return largest + std::log(sum);
}

// 24 sums in registers, for two vectors of b and 12 numbers of a.
void gemm_tile(const GemmTile& tile) {
  const __mmask16 low = first_lanes(tile.columns);
  const __mmask16 high = first_lanes(std::max(tile.columns - kLanes, 0));
  __m512 sums[kGemmRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kGemmRows; ++r) {
    const bool load = tile.accumulate && r < tile.rows;
    const float* c = tile.c + r * tile.c_stride;
    sums[r][0] = load ? _mm512_maskz_loadu_ps(low, c) : _mm512_setzero_ps();
    sums[r][1] = load ? _mm512_maskz_loadu_ps(high, c + kLanes) : _mm512_setzero_ps();
  }
  const float* a = tile.a;
  const float* b = tile.b;
  for (int k = 0; k < tile.depth; ++k, a += kGemmRows, b += kGemmColumns) {
    const __m512 b0 = _mm512_load_ps(b);
    const __m512 b1 = _mm512_load_ps(b + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kGemmRows; ++r) {
      const __m512 x = _mm512_set1_ps(a[r]);
      sums[r][0] = _mm512_fmadd_ps(x, b0, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(x, b1, sums[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kGemmRows; ++r) {
    if (r >= tile.rows) continue;
    float* c = tile.c + r * tile.c_stride;
    _mm512_mask_storeu_ps(c, low, sums[r][0]);
    _mm512_mask_storeu_ps(c + kLanes, high, sums[r][1]);
  }
}

uint64_t read(const std::byte* data, size_t bytes) {
  constexpr size_t kAhead = 4096;
  __m512i sums[4] = {};
  for (const std::byte* at = data; at < data + bytes; at += 256)
    for (int i = 0; i < 4; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + 64 * i, _MM_HINT_T1);
      sums[i] = _mm512_xor_si512(sums[i], _mm512_load_si512(at + 64 * i));
    }
  alignas(64) uint64_t words[8];
  _mm512_store_si512(
      words, _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3])));
  uint64_t all = 0;
  for (const uint64_t word : words) all ^= word;
  return all;
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
    .packed_bytes = avx512::packed_bytes,
    .pack = avx512::pack,
    .quantize = quantize,
    .matmul_q8 = avx512::matmul_q8,
    .matmul_f32 = matmul_f32,
    .gemm_tile = gemm_tile,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .swiglu_gradient = swiglu_gradient,
    .softmax = softmax,
    .store_row = avx512::store_row,
    .attention_block = avx512::attention_block,
    .attention_combine = avx512::attention_combine,
    .read = read,
};

}  // namespace kvfold
