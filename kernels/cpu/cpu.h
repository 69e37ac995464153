// The CPU kernels: a table of functions for each instruction set, chosen at run time.
//
// Every table computes the same bits. That is possible because the arithmetic is written down here, not left
// to the instruction set: integer dot products are exact, and wherever f32 values are summed the order is
// part of the contract.
//
//   dot16       sums of products over n elements run in 16 lanes, lane l taking elements l, l + 16, ... in
//   turn with
//               fused multiply-adds; the lanes are then folded in halves (8 + 8, 4 + 4, 2 + 2, 1 + 1).
//   matmul_q8   one accumulator an output: for each group of 32 columns in order,
//                   acc = fma(float(isum) * x_scale, w_scale, acc)
//                   acc = fma(x_sum, w_min, acc)            only for formats that have a min
//               with x_sum = x_scale * float(sum of x), and with isum = sum over halves of sub * (sum of q *
//               x), exact in int32 and in f32.
//   matmul_f32  dot16 over the columns, of decoded weights and f32 activations.
//   gemm_tile   one accumulator an output, over the depth in order, from 0 or from what is there already.
//   attention   see attention_block and attention_combine.
#pragma once

#include <algorithm>
#include <span>

#include "kernels/kv_page.h"
#include "kernels/views.h"

namespace kvfold {

// Activation rows that lie side by side.
inline constexpr int kPanelRows = 8;

// Activations quantised in groups of 32 columns, x = scale * q: one group of the 8 rows of a panel. All that
// a product needs of a row's group lies together: of a single row, one cache line a group.
struct alignas(64) ActivationGroup {
  struct Row {
    int8_t q[kGroup];
    float scale;
    float sum;           // scale * float(sum of q)
    int32_t minus_sum;   // minus the sum of q
    int32_t minus_last;  // minus the sum of its last 16
  };
  Row rows[kPanelRows];
};

// Rows in panels of 8, [panels][groups]; columns are padded with zeros to whole groups. Rows of the last
// panel that nobody wrote may hold anything.
struct QuantizedView {
  const ActivationGroup* data;
  int groups;
};

// Rotation tables of RoPE. An angle is turned in two steps, position = 32 b + j: keys by j, which needs a
// table of 32 entries that stays in the nearest cache, and the query by its distance to 32 b.
struct RopeView {
  const float* key_cos;       // [pairs][32]: cos(j * frequency of the pair)
  const float* key_sin;       // [pairs][32]
  const float* query_cos;     // [distances][pairs]: cos(distance * frequency), distance 0 .. distances - 1
  const float* query_sin;     // [distances][pairs]; a negative distance turns the other way
  const double* frequencies;  // [pairs], for distances beyond the table
  int distances;
  int pairs;         // rotary_dim / 2
  bool interleaved;  // pairs (2i, 2i + 1); otherwise (i, i + pairs)
};

// Rows of a lane that one call of attention_block covers. A fixed number, so that the split of a long context
// over threads does not depend on their count.
inline constexpr int kAttentionBlock = 256;

// Softmax over one block, not yet divided: for each head, the largest score, the sum of weights, the weighted
// values.
struct AttentionPartial {
  float* largest;  // [heads]
  float* sums;     // [heads]
  float* values;   // [heads][head_dim]
};

// One token's queries of one KV head.
struct AttentionQuery {
  const float* q;    // [heads][head_dim], before RoPE
  int32_t position;  // of the token
  int rows;          // how many of the block's rows it sees, the first ones; at least 1
  AttentionPartial out;
};

// Consecutive spans of a lane, of which the first `skip` rows are passed over.
struct SpanRange {
  const KvSpan* spans;
  int skip;
};

// Rows of one lane, in slot order, and the tokens that look at them.
struct AttentionBlock {
  KvPagesView pages;
  SpanRange keys, values;
  const int32_t* positions;  // by slot
  RopeView rope;
  int heads;    // query heads that share this KV head
  float scale;  // 1 / sqrt(head_dim)
  int rows;     // 1 to kAttentionBlock
  std::span<const AttentionQuery> queries;
  float* scratch;  // attention_scratch(head_dim) floats, 64-byte aligned
  // What is likely worked on after this block, or null; for speed alone.
  const AttentionBlock* next = nullptr;
};

// Query heads, over all tokens, that kernels work on at once, where a head has up to kQueryStride dimensions.
inline constexpr int kAttentionTile = 12;
inline constexpr int kQueryStride = 272;
inline size_t attention_scratch(int head_dim) {
  const size_t dimensions = static_cast<size_t>(head_dim);
  const size_t queries = head_dim <= kQueryStride ? kAttentionTile * kQueryStride : dimensions;
  // Beside the scores: the queries twice and a table of angles, or the keys of a page and four of such.
  return std::max(2 * queries + dimensions, (kPageRows + 4) * dimensions) +
         kAttentionTile * (kAttentionBlock + kPageRows);
}

// The tile of an f32 matrix product. Its operands are panels: of a, kGemmRows rows side by side,
// [depth][kGemmRows]; of b, kGemmColumns columns, [depth][kGemmColumns]. Padding may hold anything finite.
inline constexpr int kGemmRows = 12;
inline constexpr int kGemmColumns = 32;
struct GemmTile {
  const float* a;
  const float* b;  // 64-byte aligned
  int depth;
  float* c;  // [rows][columns], rows `c_stride` apart
  int64_t c_stride;
  int rows, columns;  // to be written, up to the tile's
  bool accumulate;    // the sum starts from c
};

struct CpuKernels {
  const char* name;
  bool (*supported)();

  // Tables that work on repacked weights: bytes that a weight takes when packed, and the packing of units
  // [begin, end) to memory (64-byte aligned) whose start is `out`. Null where weights are used as they are.
  // For quantised formats only. Outputs are cut in units of `row_unit` rows: the bounds of pack and of
  // matmul_q8 count these.
  int row_unit;
  size_t (*packed_bytes)(const MatrixView& weight);
  void (*pack)(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out);

  // Rows [rows][columns] to panels [ceil(rows / 8)][ceil(columns / 32)]: round to nearest even of x * (127 /
  // largest magnitude of the group).
  void (*quantize)(const float* x, int rows, int columns, ActivationGroup* panels);

  // y[t * y_stride + r] = dot(weight row r, x row t) for the rows r of units [begin, end), t in [0, rows).
  // The weight's data is packed where the table packs.
  void (*matmul_q8)(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
                    float* y, int64_t y_stride);
  // The same with f32 activations [rows][columns]; every format. `scratch` holds `columns` floats.
  void (*matmul_f32)(const MatrixView& weight, int64_t begin, int64_t end, const float* x, int rows, float* y,
                     int64_t y_stride, float* scratch);

  // c[r][j] = c[r][j] or 0, then fma(a[k][r], b[k][j], c[r][j]) for k = 0 .. depth - 1.
  void (*gemm_tile)(const GemmTile& tile);

  // out[i] = x[i] * (1 / sqrt(mean(x^2) + epsilon)) * weight[i]; the mean's sum is a dot16 of x with itself.
  void (*rms_norm)(const float* x, const float* weight, int n, float epsilon, float* out);
  // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]  (SwiGLU, Shazeer 2020). out may be gate.
  void (*swiglu)(const float* gate, const float* up, int n, float* out);

  // The way back through swiglu: gate and up become the gradients of what they were, given that of the
  // output. With s = 1 / (1 + exp(-gate)): up' = out' * (gate * s), gate' = (out' * up) * (s * (1 + gate * (1
  // - s))).
  void (*swiglu_gradient)(const float* out_gradient, int n, float* gate, float* up);
  // x[i] = exp(x[i] - largest) / sum; returns largest + log(sum), the sum in 16 lanes as dot16's. REQUIRES: n
  // > 0.
  float (*softmax)(float* x, int64_t n);

  // Writes a row to a page, as kv_store_row does.
  void (*store_row)(CacheType type, Part part, int head_dim, std::byte* page, int row, const float* in);
  // Each query by itself, over the rows that it sees. Scores are q . k with q scaled and turned, k turned,
  // summed pair by pair in order, then the dimensions past the rotary ones. Weights exp(score - largest) are
  // summed in 16 lanes by row; values add up in row order.
  void (*attention_block)(const AttentionBlock& block);
  // Joins `blocks` partials, laid out one after another, in order: out[heads][head_dim].
  void (*attention_combine)(const AttentionPartial& parts, int blocks, int heads, int head_dim, float* out);

  // Reads memory once, in order and asked for ahead: the speed that kernels are measured against. Returns the
  // exclusive or of its 64-bit words. REQUIRES: `data` 64-byte aligned, `bytes` a multiple of 256.
  uint64_t (*read)(const std::byte* data, size_t bytes);
};

// All tables that this build holds, best first; the last one runs everywhere.
std::span<const CpuKernels* const> cpu_kernel_tables();
// The first table that this machine supports, or the one named by `name` (null when unknown or unsupported
// here).
const CpuKernels* select_cpu_kernels(const char* name = nullptr);

}  // namespace kvfold
