// Kernels for AVX-512 with VNNI: the table, and its small operations. Every function gives the bits of its
// plain twin in plain.cpp: the same sums in the same order, 16 of them side by side.
#include "kernels/cpu/avx512.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/packed.h"
#include "kernels/formats/formats.h"

namespace kvfold {

extern const CpuKernels kAvx512Kernels;

namespace {

using namespace avx512;

// ---- small operations ----

void quantize_row(const float* x, int columns, ActivationGroup* panel, int row) {
  for (int g = 0; g * kGroup < columns; ++g, ++panel) {
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
    _mm_storeu_si128(reinterpret_cast<__m128i*>(panel->q[row]), _mm512_cvtepi32_epi8(q_low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(panel->q[row] + kLanes), _mm512_cvtepi32_epi8(q_high));
    const int32_t first = _mm512_reduce_add_epi32(q_low);
    const int32_t second = _mm512_reduce_add_epi32(q_high);
    panel->scale[row] = largest / 127.0F;
    panel->half_sums[row][0] = first;
    panel->half_sums[row][1] = second;
    panel->sum[row] = panel->scale[row] * static_cast<float>(first + second);
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
    .quantize_row = quantize_row,
    .matmul_q8 = avx512::matmul_q8,
    .matmul_f32 = matmul_f32,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .store_row = avx512::store_row,
    .attention_block = avx512::attention_block,
    .attention_combine = avx512::attention_combine,
};

}  // namespace kvfold
