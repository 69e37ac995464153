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
//   attention   see attention_block and attention_combine.
#pragma once

#include <span>

#include "kernels/kv_page.h"
#include "kernels/views.h"

namespace kvfold {

// Activations quantised in groups of 32 columns: x = scale * q. Rows follow each other; columns are padded
// with zeros to whole groups.
struct QuantizedView {
  const int8_t* q;           // [rows][groups * 32]
  const float* scales;       // [rows][groups]
  const int32_t* half_sums;  // [rows][groups][2]: sum of q over the first and the second 16 of a group
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

// One token's queries of one KV head, over rows [begin, end) of that head's lane (counted in the lane, slot
// order).
struct AttentionBlock {
  KvPagesView pages;
  KvLaneView lane;
  const int32_t* positions;  // by slot
  RopeView rope;
  const float* queries;  // [heads][head_dim], before RoPE
  int heads;             // query heads that share this KV head
  int32_t position;      // of the token
  float scale;           // 1 / sqrt(head_dim)
  int begin, end;
};

// Softmax over one block, not yet divided: for each head, the largest score, the sum of weights, the weighted
// values.
struct AttentionPartial {
  float* largest;  // [heads]
  float* sums;     // [heads]
  float* values;   // [heads][head_dim]
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

  // One row of `columns` values to ceil(columns / 32) groups: round to nearest even of x * (127 / largest
  // magnitude).
  void (*quantize_row)(const float* x, int columns, int8_t* q, float* scales, int32_t* half_sums);

  // y[t * y_stride + r] = dot(weight row r, x row t) for the rows r of units [begin, end), t in [0, rows).
  // The weight's data is packed where the table packs.
  void (*matmul_q8)(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
                    float* y, int64_t y_stride);
  // The same with f32 activations [rows][columns]; every format. `scratch` holds `columns` floats.
  void (*matmul_f32)(const MatrixView& weight, int64_t begin, int64_t end, const float* x, int rows, float* y,
                     int64_t y_stride, float* scratch);

  // out[i] = x[i] * (1 / sqrt(mean(x^2) + epsilon)) * weight[i]; the mean's sum is a dot16 of x with itself.
  void (*rms_norm)(const float* x, const float* weight, int n, float epsilon, float* out);
  // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]  (SwiGLU, Shazeer 2020). out may be gate.
  void (*swiglu)(const float* gate, const float* up, int n, float* out);

  // Scores are q . k with q scaled and turned, k turned, summed pair by pair in order, then the dimensions
  // past the rotary ones. Weights exp(score - largest) are summed in 16 lanes by row; values add up in row
  // order.
  void (*attention_block)(const AttentionBlock& block, const AttentionPartial& out);
  // Joins `blocks` partials, laid out one after another, in order: out[heads][head_dim].
  void (*attention_combine)(const AttentionPartial& parts, int blocks, int heads, int head_dim, float* out);
};

// All tables that this build holds, best first; the last one runs everywhere.
std::span<const CpuKernels* const> cpu_kernel_tables();
// The first table that this machine supports, or the one named by `name` (null when unknown or unsupported
// here).
const CpuKernels* select_cpu_kernels(const char* name = nullptr);

}  // namespace kvfold
