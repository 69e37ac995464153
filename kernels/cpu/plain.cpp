// The plain kernels: what every other table is tested against. Each loop is the contract of cpu.h, written
// down.
//
// This file is compiled twice: for the oldest machine of the target, where std::fma may be a library call,
// and, as "plain" on machines that have it, for x86-64-v3, where the compiler turns the same loops into
// vector code with the same bits. Which of the two runs is decided in cpu.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/runs.h"
#include "kernels/formats/all.h"
#include "kernels/formats/formats.h"

#if !defined(KVFOLD_PLAIN_TABLE)
#define KVFOLD_PLAIN_TABLE kPlainKernels
#endif

namespace kvfold {

extern const CpuKernels KVFOLD_PLAIN_TABLE;

namespace {

void quantize_row(const float* x, int columns, int8_t* q, float* scales, int32_t* half_sums) {
  for (int g = 0; g * kGroup < columns; ++g) {
    const int n = std::min(kGroup, columns - g * kGroup);
    float largest = 0;
    for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[g * kGroup + i]));
    const float inverse = largest > 0 ? 127.0F / largest : 0.0F;
    half_sums[2 * g] = half_sums[2 * g + 1] = 0;
    for (int i = 0; i < kGroup; ++i) {
      float v = i < n ? x[g * kGroup + i] * inverse : 0.0F;
      v = v > -127.0F ? v : -127.0F;
      v = v < 127.0F ? v : 127.0F;
      const auto rounded = static_cast<int32_t>(std::nearbyintf(v));
      q[g * kGroup + i] = static_cast<int8_t>(rounded);
      half_sums[2 * g + i / 16] += rounded;
    }
    scales[g] = largest / 127.0F;
  }
}

// Both sides are widened to 16 bits first: compilers know a dot product of such numbers, and none of bytes.
template <int n>
int32_t dot(const int8_t* w, const int8_t* x) {
  int16_t wide_w[n];
  int16_t wide_x[n];
  for (int i = 0; i < n; ++i) wide_w[i] = w[i];
  for (int i = 0; i < n; ++i) wide_x[i] = x[i];
  int32_t sum = 0;
  for (int i = 0; i < n; ++i) sum += wide_w[i] * wide_x[i];
  return sum;
}

template <class Format>
int32_t group_dot(const QuantGroup& w, const int8_t* x) {
  if constexpr (Format::kHasSubScales)
    return w.sub[0] * dot<16>(w.q, x) + w.sub[1] * dot<16>(w.q + 16, x + 16);
  return dot<kGroup>(w.q, x);
}

// Activation rows that share one decoding of a weight group.
constexpr int kRowTile = 16;

template <class Format>
void matmul_q8_format(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
                      float* y, int64_t y_stride) {
  constexpr int kGroups = Format::kBlockElements / kGroup;
  const int64_t blocks = weight.columns / Format::kBlockElements;
  const auto* matrix = reinterpret_cast<const typename Format::Block*>(weight.data);
  for (int64_t r = begin; r < end; ++r) {
    for (int first = 0; first < rows; first += kRowTile) {
      const int n = std::min(kRowTile, rows - first);
      float acc[kRowTile] = {};
      for (int64_t b = 0; b < blocks; ++b) {
        for (int g = 0; g < kGroups; ++g) {
          QuantGroup w;
          Format::group(matrix[r * blocks + b], g, w);
          const int64_t at = b * kGroups + g;
          for (int t = 0; t < n; ++t) {
            const int64_t group = (first + t) * static_cast<int64_t>(x.groups) + at;
            const auto isum = static_cast<float>(group_dot<Format>(w, x.q + group * kGroup));
            acc[t] = std::fma(isum * x.scales[group], w.scale, acc[t]);
            if constexpr (Format::kHasMin) {
              const auto sum = static_cast<float>(x.half_sums[2 * group] + x.half_sums[2 * group + 1]);
              acc[t] = std::fma(x.scales[group] * sum, w.min, acc[t]);
            }
          }
        }
      }
      for (int t = 0; t < n; ++t) y[(first + t) * y_stride + r] = acc[t];
    }
  }
}

void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride) {
  visit_quantized_format(weight.type, [&](auto format) {
    matmul_q8_format<decltype(format)>(weight, begin, end, x, rows, y, y_stride);
  });
}

void matmul_f32(const MatrixView& weight, int64_t begin, int64_t end, const float* x, int rows, float* y,
                int64_t y_stride, float* scratch) {
  const FormatInfo& format = format_info(weight.type);
  const int64_t row_bytes = weight.columns / format.block_elements * format.block_bytes;
  for (int64_t r = begin; r < end; ++r) {
    format.decode(weight.data + r * row_bytes, scratch, static_cast<size_t>(weight.columns));
    for (int t = 0; t < rows; ++t)
      y[t * y_stride + r] = dot16(scratch, x + t * weight.columns, weight.columns);
  }
}

void rms_norm(const float* x, const float* weight, int n, float epsilon, float* out) {
  const float scale = 1.0F / std::sqrt(dot16(x, x, n) / static_cast<float>(n) + epsilon);
  for (int i = 0; i < n; ++i) out[i] = (x[i] * scale) * weight[i];
}

void swiglu(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = (gate[i] / (1.0F + exp_f32(-gate[i]))) * up[i];
}

// One element of a page as f32; `index` as kv_index gives it.
float load_element(const KvPagesView& pages, Part part, const std::byte* page, int row, int dimension) {
  const size_t index = kv_index(part, pages.head_dim, row, dimension);
  switch (pages.type) {
    case CacheType::kF16:
      return f16_to_f32(reinterpret_cast<const uint16_t*>(page)[index]);
    case CacheType::kF32:
      return reinterpret_cast<const float*>(page)[index];
    case CacheType::kQ8:
      break;
  }
  const auto* scales = reinterpret_cast<const float*>(page + static_cast<size_t>(pages.head_dim) * kPageRows);
  return static_cast<float>(reinterpret_cast<const int8_t*>(page)[index]) *
         scales[kv_scale_index(part, pages.head_dim, row, dimension / 32)];
}

// Adds q[dimension] * k[row][dimension] of one run to the scores, dimension pairs first, turned, in order.
void score_run(const AttentionBlock& block, const Run& run, const float* turned, float* scores) {
  const int head_dim = block.pages.head_dim;
  const RopeView& rope = block.rope;
  float keys[2][kPageRows];
  const auto accumulate = [&](const float* k, int dimension) {
    for (int h = 0; h < block.heads; ++h)
      for (int r = 0; r < run.count; ++r) {
        float& score = scores[h * kAttentionBlock + r];
        score = std::fma(turned[h * head_dim + dimension], k[r], score);
      }
  };
  for (int i = 0; i < rope.pairs; ++i) {
    const int a = rope.interleaved ? 2 * i : i;
    const int b = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
    const float* c = rope.key_cos + i * kPageRows + run.offset;
    const float* s = rope.key_sin + i * kPageRows + run.offset;
    for (int r = 0; r < run.count; ++r) {
      const float ka = load_element(block.pages, Part::kKey, run.page, run.row + r, a);
      const float kb = load_element(block.pages, Part::kKey, run.page, run.row + r, b);
      keys[0][r] = std::fma(ka, c[r], -(kb * s[r]));
      keys[1][r] = std::fma(ka, s[r], kb * c[r]);
    }
    accumulate(keys[0], a);
    accumulate(keys[1], b);
  }
  for (int d = 2 * rope.pairs; d < head_dim; ++d) {
    for (int r = 0; r < run.count; ++r)
      keys[0][r] = load_element(block.pages, Part::kKey, run.page, run.row + r, d);
    accumulate(keys[0], d);
  }
}

void attention_block(const AttentionBlock& block, const AttentionPartial& out) {
  const int head_dim = block.pages.head_dim;
  const int rows = block.end - block.begin;
  std::vector<float> scores(static_cast<size_t>(block.heads) * kAttentionBlock, 0.0F);
  for_each_turned_run(block, block.queries, block.heads, [&](const Run& run, int index, const float* turned) {
    score_run(block, run, turned, &scores[index]);
  });
  for (int h = 0; h < block.heads; ++h) {
    float* s = &scores[static_cast<size_t>(h) * kAttentionBlock];
    float largest = s[0];
    for (int r = 1; r < rows; ++r) largest = std::max(largest, s[r]);
    float lanes[16] = {};
    for (int r = 0; r < rows; ++r) {
      s[r] = exp_f32(s[r] - largest);
      lanes[r % 16] += s[r];
    }
    out.largest[h] = largest;
    out.sums[h] = fold16(lanes);
  }
  std::fill_n(out.values, static_cast<size_t>(block.heads) * head_dim, 0.0F);
  std::vector<float> value(head_dim);
  for_each_span(block, Part::kValue, [&](const std::byte* page, int row, int count, int index) {
    for (int r = 0; r < count; ++r) {
      kv_load_row(block.pages.type, Part::kValue, head_dim, page, row + r, value.data());
      for (int h = 0; h < block.heads; ++h) {
        const float weight = scores[static_cast<size_t>(h) * kAttentionBlock + index + r];
        float* sum = out.values + static_cast<size_t>(h) * head_dim;
        for (int d = 0; d < head_dim; ++d) sum[d] = std::fma(weight, value[d], sum[d]);
      }
    }
  });
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
#if defined(__AVX2__) && defined(__FMA__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
  return true;
#endif
}

}  // namespace

const CpuKernels KVFOLD_PLAIN_TABLE = {
    .name = "plain",
    .supported = supported,
    .row_unit = 1,
    .packed_bytes = nullptr,
    .pack = nullptr,
    .quantize_row = quantize_row,
    .matmul_q8 = matmul_q8,
    .matmul_f32 = matmul_f32,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .attention_block = attention_block,
    .attention_combine = attention_combine,
};

}  // namespace kvfold
