// What the AVX-512 kernels share. Everything is inlined always: code compiled for newer instruction sets must
// not leave copies that the linker could pick for everyone.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/math.h"

#define KVFOLD_INLINE [[gnu::always_inline]] inline

namespace kvfold::avx512 {

inline constexpr int kLanes = 16;

KVFOLD_INLINE __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>(n >= kLanes ? 0xFFFF : (1U << n) - 1);
}

KVFOLD_INLINE float fold(__m512 lanes) {
  alignas(64) float values[kLanes];
  _mm512_store_ps(values, lanes);
  return fold16(values);
}

// exp_f32 of math.h, step by step.
KVFOLD_INLINE __m512 exp_vector(__m512 x) {
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

KVFOLD_INLINE __m512 dot_lanes(const float* a, const float* b, int64_t n) {
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

// The parts of the table that have files of their own.
size_t packed_bytes(const MatrixView& weight);
void pack(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out);
void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride);
void store_row(CacheType type, Part part, int head_dim, std::byte* page, int row, const float* in);
void attention_block(const AttentionBlock& block);
void attention_combine(const AttentionPartial& parts, int blocks, int heads, int head_dim, float* out);

}  // namespace kvfold::avx512
