// The CUDA kernels' launchers. All pointers are to device memory, all work is queued on `stream`, and errors
// of a launch are left for cudaGetLastError(). The arithmetic, and the order of every sum, is that of
// kernels/cpu/cpu.h: integer products and everything else here give its bits, for any number of rows.
// Products of cuBLAS (engine/cublas.h), which is not ours, do not.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <limits>
#include <span>

#include "kernels/cuda/packed.h"
#include "kernels/cuda/scratch.h"
#include "kernels/kv_page.h"
#include "kernels/row_change.h"

namespace kvfold::cuda {

// Activations in groups of 32: x = scale * q.
struct QuantizedRows {
  int8_t* q;      // [rows][groups * 32], padded with zeros
  float* scales;  // [rows][groups]
  int groups;
};

// Where a product's outputs go: out[row * rows of the weight + r] = x w_r + bias[r], or that added to what is
// there.
struct Product {
  PackedView weight;
  const float* bias = nullptr;
  float* out = nullptr;
  bool accumulate = false;
};

inline constexpr int kMostProducts = 3;

// Products of one input with weights of one quantised format. REQUIRES: count <= kMostProducts.
void mat_vec(const Product* products, int count, const QuantizedRows& x, int rows,
             cudaStream_t stream);  // rows <= 16
void mat_tile(const Product& product, const QuantizedRows& x, int rows, cudaStream_t stream);
// Any format, with f32 activations x [rows][columns].
void mat_float(const Product& product, const float* x, int rows, cudaStream_t stream);

// What stands before the products: each row of x [rows][columns] through RMS norm where `norm` is given; or
// silu(gate) * up. To int8 groups, or to floats (out may be x).
void quantize(const float* x, int rows, int columns, const QuantizedRows& out, cudaStream_t stream);
void norm_quantize(const float* x, const float* norm, float epsilon, int rows, int columns,
                   const QuantizedRows& out, cudaStream_t stream);
void swiglu_quantize(const float* gate, const float* up, int rows, int columns, const QuantizedRows& out,
                     cudaStream_t stream);
void norm(const float* x, const float* norm, float epsilon, int rows, int columns, float* out,
          cudaStream_t stream);
// Most columns of a norm, where a block may have that many bytes of shared memory.
int most_norm_columns(size_t shared_bytes);
void swiglu(const float* gate, const float* up, size_t count, float* out, cudaStream_t stream);
// y += bias by row, then y or out + y to out: what ends a product that another library made.
void finish_product(const float* y, const Product& product, int rows, cudaStream_t stream);

// out[i][columns] = row ids[i] of the table; all rows from `first` on where ids is null.
void decode_rows(const PackedView& table, const int32_t* ids, int first, int count, float* out,
                 cudaStream_t stream);

// The k largest of each row of x [rows][columns], largest first, NaN last, equals by index: keys [rows][k],
// somewhere in the scratch memory. REQUIRES: 1 <= k <= kMostLikeliest, k <= columns, rows >= 1.
const uint64_t* likeliest(const float* x, int rows, int columns, int k, uint64_t* scratch,
                          cudaStream_t stream);
// What a key stands for; -0 has become 0, and every NaN one and the same.
inline int32_t key_index(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFU - static_cast<uint32_t>(key));
}
inline float key_value(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  if (ordered == 0) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>((ordered & 0x80000000U) != 0 ? ordered & 0x7FFFFFFFU : ~ordered);
}

// A span of a page table; `row` is the row of the lane that it begins with.
struct DeviceSpan {
  uint32_t page;
  int32_t slot;
  int32_t row;
  uint16_t first;
  uint16_t count;
};
// One lane's K or V of one sequence: spans begin .. begin + count - 1 of DeviceBatch::spans.
struct DeviceTable {
  int32_t begin;
  int32_t count;
};
// A token of the batch.
struct DeviceToken {
  int32_t sequence;
  int32_t slot;
  int32_t position;
  int32_t id;
};
// What a batch is made of, sent over once for all layers.
struct DeviceBatch {
  const DeviceToken* tokens;  // [rows]
  const DeviceTable* tables;  // [sequences][layers * kv_heads][2]: K, V
  const DeviceSpan* spans;
  const int32_t* positions;        // of all sequences; a sequence's begin at positions_begin
  const int32_t* positions_begin;  // [sequences]
};

// RoPE's tables as RopeView has them, in device memory.
struct DeviceRope {
  const float* key_cos;
  const float* key_sin;
  const float* query_cos;
  const float* query_sin;
  const double* frequencies;
  int distances;
  int pairs;
  bool interleaved;
};

struct KvShape {
  KvPagesView pages;
  int lanes;  // layers * kv_heads
  int kv_heads;
  int group;  // query heads of a KV head
};

// k, v [rows][kv_heads * head_dim] to the pages of the batch's tokens.
void store_kv(const DeviceBatch& batch, const KvShape& shape, int layer, int rows, const float* k,
              const float* v, cudaStream_t stream);

// attention_scratch_floats() of them.
struct AttentionScratch {
  float* largest;
  float* sums;
  float* values;  // ... [head_dim]
};
// Tokens first .. first + tokens - 1 of the batch, each of which sees at most 256 * blocks rows. REQUIRES:
// tokens <= kMostAttentionTokens, as a grid is no longer.
inline constexpr int kMostAttentionTokens = 65535;
// q, out [rows][heads * head_dim].
void attention(const DeviceBatch& batch, const KvShape& shape, const DeviceRope& rope, int layer, int first,
               int tokens, int blocks, float scale, const float* q, const AttentionScratch& scratch,
               float* out, cudaStream_t stream);
// Largest heads that attention takes, where a block may have that many bytes of shared memory.
int most_head_dim(CacheType type, size_t shared_bytes);

// Work on rows of caches (engine/kv/page_rows.cpp does the same on the host). Spans are of device memory, but
// for those of copies, which go with the launch. *unheld becomes 1 where the pages cannot hold what was made
// (kv_holds()). norms [runs][kPageRows], of the rows `from`; 0 behind a run's last.
void change_rows(const KvPagesView& pages, const RowChange& change, std::span<const RowRun> runs,
                 unsigned* unheld, cudaStream_t stream);
void row_norms(const KvPagesView& pages, std::span<const RowRun> runs, double* norms, cudaStream_t stream);
void copy_rows(const KvPagesView& pages, std::span<const RowCopy> copies, cudaStream_t stream);

}  // namespace kvfold::cuda
