// The plain kernels: what every other table is tested against. Each loop is the contract of cpu.h, written
// down.
//
// This file is compiled twice: for the oldest machine of the target, where std::fma may be a library call,
// and, for x86-64-v3, as what the table for AVX2 does not do by intrinsics: the compiler turns the same loops
// into vector code with the same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/panels.h"
#include "kernels/cpu/runs.h"
#include "kernels/formats/all.h"
#include "kernels/formats/formats.h"

#if defined(__AVX2__)
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/packed.h"
#endif

namespace kvfold {

extern const CpuKernels kPlainKernels;
extern const CpuKernels kAvx2Kernels;

namespace {

// The first n values of a group; the others are zeros.
void quantize_group(const float* x, int n, ActivationGroup::Row& out) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float inverse = largest > 0 ? 127.0F / largest : 0.0F;
  int32_t sums[2] = {0, 0};
  for (int i = 0; i < kGroup; ++i) {
    float v = i < n ? x[i] * inverse : 0.0F;
    v = v > -127.0F ? v : -127.0F;
    v = v < 127.0F ? v : 127.0F;
    const auto rounded = static_cast<int32_t>(std::nearbyintf(v));
    out.q[i] = static_cast<int8_t>(rounded);
    sums[i / 16] += rounded;
  }
  out.scale = largest / 127.0F;
  out.minus_sum = -sums[0] - sums[1];
  out.minus_last = -sums[1];
  out.sum = out.scale * static_cast<float>(sums[0] + sums[1]);
}

void quantize(const float* x, int rows, int columns, ActivationGroup* panels) {
  for_each_group(x, rows, columns, panels,
                 [](const float* group, int n, ActivationGroup::Row& to) { quantize_group(group, n, to); });
}

#if !defined(__AVX2__)
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

template <class Format>
void matmul_q8_format(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
                      float* y, int64_t y_stride) {
  constexpr int kGroups = Format::kBlockElements / kGroup;
  const int64_t blocks = weight.columns / Format::kBlockElements;
  const auto* matrix = reinterpret_cast<const typename Format::Block*>(weight.data);
  for (int64_t r = begin; r < end; ++r) {
    for (int first = 0; first < rows; first += kPanelRows) {
      const int n = std::min(kPanelRows, rows - first);
      const ActivationGroup* panel = x.data + static_cast<int64_t>(first / kPanelRows) * x.groups;
      float acc[kPanelRows] = {};
      for (int64_t b = 0; b < blocks; ++b) {
        for (int g = 0; g < kGroups; ++g, ++panel) {
          QuantGroup w;
          Format::group(matrix[r * blocks + b], g, w);
          for (int t = 0; t < n; ++t) {
            const auto isum = static_cast<float>(group_dot<Format>(w, panel->rows[t].q));
            acc[t] = std::fma(isum * panel->rows[t].scale, w.scale, acc[t]);
            if constexpr (Format::kHasMin) acc[t] = std::fma(panel->rows[t].sum, w.min, acc[t]);
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

#endif

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

#if !defined(__AVX2__)
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

// A query [head_dim] scaled and turned by `distance` positions.
void turn_query(const RopeView& rope, int64_t distance, int head_dim, float scale, const float* q,
                float* out) {
  std::vector<float> memory(static_cast<size_t>(2) * rope.pairs);
  const Angles angles = angles_of(rope, distance, memory.data());
  for (int d = 0; d < head_dim; ++d) out[d] = q[d] * scale;
  for (int i = 0; i < rope.pairs; ++i) {
    const float c = angles.cos[i];
    const float s = angles.sin[i] * angles.sign;
    const int a = rope.interleaved ? 2 * i : i;
    const int b = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
    const float qa = out[a];
    const float qb = out[b];
    out[a] = std::fma(qa, c, -(qb * s));
    out[b] = std::fma(qa, s, qb * c);
  }
}

// Adds q[dimension] * k[row][dimension] of one run to the scores of one head, dimension pairs first, turned,
// in order.
void score_run(const AttentionBlock& block, const Run& run, const float* turned, float* scores) {
  const RopeView& rope = block.rope;
  for (int r = 0; r < run.count; ++r) {
    const auto key = [&](int dimension) {
      return load_element(block.pages, Part::kKey, run.page, run.row + r, dimension);
    };
    float score = 0;
    for (int i = 0; i < rope.pairs; ++i) {
      const int a = rope.interleaved ? 2 * i : i;
      const int b = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
      const float c = rope.key_cos[i * kPageRows + run.offset + r];
      const float s = rope.key_sin[i * kPageRows + run.offset + r];
      score = std::fma(turned[a], std::fma(key(a), c, -(key(b) * s)), score);
      score = std::fma(turned[b], std::fma(key(a), s, key(b) * c), score);
    }
    for (int d = 2 * rope.pairs; d < block.pages.head_dim; ++d) score = std::fma(turned[d], key(d), score);
    scores[r] = score;
  }
}

void attend_head(const AttentionBlock& block, const AttentionQuery& query, int head) {
  const int head_dim = block.pages.head_dim;
  const float* q = query.q + static_cast<size_t>(head) * head_dim;
  float scores[kAttentionBlock] = {};
  std::vector<float> turned(head_dim);
  Run runs[kAttentionBlock];
  const int found = find_runs(block, query.rows, runs);
  for (const Run& run : std::span(runs, static_cast<size_t>(found))) {
    turn_query(block.rope, static_cast<int64_t>(query.position) - run.base, head_dim, block.scale, q,
               turned.data());
    score_run(block, run, turned.data(), scores + run.index);
  }
  const float largest = *std::max_element(scores, scores + query.rows);
  float lanes[16] = {};
  for (int r = 0; r < query.rows; ++r) {
    scores[r] = exp_f32(scores[r] - largest);
    lanes[r % 16] += scores[r];
  }
  query.out.largest[head] = largest;
  query.out.sums[head] = fold16(lanes);
  float* values = query.out.values + static_cast<size_t>(head) * head_dim;
  std::fill_n(values, head_dim, 0.0F);
  std::vector<float> value(head_dim);
  for_each_page(block, block.values, query.rows, [&](const PageRows& rows) {
    for (int r = 0; r < rows.count; ++r) {
      kv_load_row(block.pages.type, Part::kValue, head_dim, rows.page, rows.row + r, value.data());
      for (int d = 0; d < head_dim; ++d) values[d] = std::fma(scores[rows.index + r], value[d], values[d]);
    }
  });
}

void attention_block(const AttentionBlock& block) {
  for (const AttentionQuery& query : block.queries)
    for (int head = 0; head < block.heads; ++head) attend_head(block, query, head);
}

#endif

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

void swiglu_gradient(const float* out_gradient, int n, float* gate, float* up) {
  for (int i = 0; i < n; ++i) {
    const float g = gate[i];
    const float s = 1.0F / (1.0F + exp_f32(-g));
    const float to_up = out_gradient[i] * (g * s);
    gate[i] = (out_gradient[i] * up[i]) * (s * (1.0F + g * (1.0F - s)));
    up[i] = to_up;
  }
}

float softmax(float* x, int64_t n) {
  float largest = x[0];
  for (int64_t i = 1; i < n; ++i) largest = std::max(largest, x[i]);
  float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_f32(x[i] - largest);
    lanes[i % 16] += x[i];
  }
  const float sum = fold16(lanes);
  const float inverse = 1.0F / sum;
  for (int64_t i = 0; i < n; ++i) x[i] *= inverse;
  return largest + std::log(sum);
}

// A quarter of the tile's rows and half of its columns at a time: as many sums as 16 vector registers hold.
void gemm_tile(const GemmTile& tile) {
  constexpr int kRows = 3;
  constexpr int kColumns = 16;
  for (int r0 = 0; r0 < tile.rows; r0 += kRows)
    for (int j0 = 0; j0 < tile.columns; j0 += kColumns) {
      float sums[kRows][kColumns] = {};
      const int rows = std::min(kRows, tile.rows - r0);
      const int columns = std::min(kColumns, tile.columns - j0);
      float* c = tile.c + r0 * tile.c_stride + j0;
      if (tile.accumulate)
        for (int r = 0; r < rows; ++r) std::copy_n(c + r * tile.c_stride, columns, sums[r]);
      const float* a = tile.a + r0;
      const float* b = tile.b + j0;
      for (int k = 0; k < tile.depth; ++k, a += kGemmRows, b += kGemmColumns)
        for (int r = 0; r < kRows; ++r)
          for (int j = 0; j < kColumns; ++j) sums[r][j] = std::fma(a[r], b[j], sums[r][j]);
      for (int r = 0; r < rows; ++r) std::copy_n(sums[r], columns, c + r * tile.c_stride);
    }
}

uint64_t read(const std::byte* data, size_t bytes) {
  constexpr size_t kWords = 256 / sizeof(uint64_t);
  constexpr size_t kAhead = 4096;
  uint64_t sums[kWords] = {};
  for (const std::byte* at = data; at < data + bytes; at += 256) {
    for (int i = 0; i < 4; ++i) __builtin_prefetch(at + kAhead + 64 * i);
    uint64_t words[kWords];
    std::memcpy(words, at, sizeof words);
    for (size_t i = 0; i < kWords; ++i) sums[i] ^= words[i];
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all ^= sum;
  return all;
}

bool supported() {
#if defined(__AVX2__)
  // Every machine that has these has f16c too, for which there is no name that all compilers know.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
  return true;
#endif
}

}  // namespace

#if defined(__AVX2__)
const CpuKernels kAvx2Kernels = {
    .name = "avx2",
    .supported = supported,
    .row_unit = kTileRows,
    .packed_bytes = avx2::packed_bytes,
    .pack = avx2::pack,
    .quantize = quantize,
    .matmul_q8 = avx2::matmul_q8,
    .matmul_f32 = matmul_f32,
    .gemm_tile = gemm_tile,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .swiglu_gradient = swiglu_gradient,
    .softmax = softmax,
    .store_row = kv_store_row,
    .attention_block = avx2::attention_block,
    .attention_combine = attention_combine,
    .read = read,
};
#else
const CpuKernels kPlainKernels = {
    .name = "plain",
    .supported = supported,
    .row_unit = 1,
    .packed_bytes = nullptr,
    .pack = nullptr,
    .quantize = quantize,
    .matmul_q8 = matmul_q8,
    .matmul_f32 = matmul_f32,
    .gemm_tile = gemm_tile,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .swiglu_gradient = swiglu_gradient,
    .softmax = softmax,
    .store_row = kv_store_row,
    .attention_block = attention_block,
    .attention_combine = attention_combine,
    .read = read,
};
#endif

}  // namespace kvfold
