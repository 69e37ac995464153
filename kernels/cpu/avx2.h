// What the AVX2 kernels share; see avx512.h, whose twin this is with vectors of 8.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/math.h"

#define KVFOLD_INLINE [[gnu::always_inline]] inline

namespace kvfold::avx2 {

inline constexpr int kLanes = 8;

// All bits set in the first n lanes.
KVFOLD_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// exp_f32 of math.h, step by step.
KVFOLD_INLINE __m256 exp_vector(__m256 x) {
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.3F));
  x = _mm256_min_ps(x, _mm256_set1_ps(88.3F));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341F)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693359375F), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4F), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4F);
  for (const float c :
       {1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F})
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(_mm256_add_ps(p, _mm256_set1_ps(1.0F)), _mm256_castsi256_ps(exponent));
}

// The parts of the table that have files of their own.
size_t packed_bytes(const MatrixView& weight);
void pack(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out);
void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride);
void attention_block(const AttentionBlock& block);

}  // namespace kvfold::avx2
