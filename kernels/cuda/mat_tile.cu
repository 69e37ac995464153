// Products of many rows of int8 activations with quantised weights (prefill).
//
// A block of 256 threads makes 64 outputs of 64 rows, a thread 4 x 4 of them. Weights are unpacked to bytes
// in shared memory once for all 64 rows; four groups of 32 columns at a time. Rows in shared memory are 144
// bytes apart, so that the 8 lanes of a quarter warp that read 16 bytes each meet all 32 banks once. Per
// group a thread reads 16 pieces of 16 bytes for 128 dp4a. Sums run over the groups in column order, as
// everywhere.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lanes.cuh"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;  // outputs, and rows, of a block
constexpr int kQuad = 4;
constexpr int kPitch = 2 * kQuad + 1;  // 16-byte pieces from row to row
constexpr int kEach = 4;               // outputs, and rows, of a thread

template <class Format>
struct SharedTile {
  uint4 w[kTile * kPitch];
  uint4 x[kTile * kPitch];
  float w_scale[kQuad][kTile];
  float w_min[Format::kHasMin ? kQuad : 1][kTile];
  int2 w_sub[Format::kHasSubScales ? kQuad : 1][kTile];
  float x_scale[kQuad][kTile];
  float x_sum[Format::kHasMin ? kQuad : 1][kTile];  // scale * sum
};

// Warp i unpacks tile i of the block's 8: lane 8 g + r row r of group g.
template <class Format>
__device__ void fill_weights(const PackedView& w, int first_tile, int first, SharedTile<Format>& to) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int in_block = static_cast<int>(threadIdx.x) / 32;
  const int tile = first_tile + in_block;
  const int slot = lane / kTileRows;
  const int group = first + slot;
  const int row = lane % kTileRows;
  LaneGroup<Format> part;
  part.clear();
  if (tile * kTileRows < w.rows && group < w.groups) {
    part.load(w, (static_cast<size_t>(tile) * w.groups + group) * kTileRows + row);
    part.load_super(w, (static_cast<size_t>(tile) * ((w.groups + 7) / 8) + group / 8) * kTileRows + row);
  }
  const int at = in_block * kTileRows + row;
  to.w[at * kPitch + 2 * slot] =
      make_uint4(part.signed_word(0), part.signed_word(1), part.signed_word(2), part.signed_word(3));
  to.w[at * kPitch + 2 * slot + 1] =
      make_uint4(part.signed_word(4), part.signed_word(5), part.signed_word(6), part.signed_word(7));
  to.w_scale[slot][at] = part.scale();
  if constexpr (Format::kHasMin) to.w_min[slot][at] = part.min();
  if constexpr (Format::kHasSubScales) to.w_sub[slot][at] = make_int2(part.sub(0), part.sub(1));
}

// Thread 4 r + g of the block takes group g of row r.
template <class Format>
__device__ void fill_rows(const QuantizedRows& x, int first_row, int rows, int first,
                          SharedTile<Format>& to) {
  const int at = static_cast<int>(threadIdx.x) / kQuad;
  const int slot = static_cast<int>(threadIdx.x) % kQuad;
  uint4 low = make_uint4(0, 0, 0, 0);
  uint4 high = low;
  float scale = 0;
  if (first_row + at < rows && first + slot < x.groups) {
    const size_t group = static_cast<size_t>(first_row + at) * x.groups + first + slot;
    low = reinterpret_cast<const uint4*>(x.q)[2 * group];
    high = reinterpret_cast<const uint4*>(x.q)[2 * group + 1];
    scale = x.scales[group];
  }
  to.x[at * kPitch + 2 * slot] = low;
  to.x[at * kPitch + 2 * slot + 1] = high;
  to.x_scale[slot][at] = scale;
  if constexpr (Format::kHasMin) {
    const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = __dp4a(static_cast<int>(words[i]), 0x01010101, sum);
    to.x_sum[slot][at] = scale * static_cast<float>(sum);
  }
}

__device__ __forceinline__ int dot16_bytes(const uint4& a, const uint4& b) {
  int sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), 0);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}

// One group's terms of the thread's outputs: outputs ty + 16 i, rows tx + 16 j.
template <class Format>
__device__ __forceinline__ void add_group(const SharedTile<Format>& s, int slot, int tx, int ty,
                                          float (&acc)[kEach][kEach]) {
  uint4 low[kEach];
  uint4 high[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    low[j] = s.x[(tx + 16 * j) * kPitch + 2 * slot];
    high[j] = s.x[(tx + 16 * j) * kPitch + 2 * slot + 1];
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int output = ty + 16 * i;
    const uint4 w_low = s.w[output * kPitch + 2 * slot];
    const uint4 w_high = s.w[output * kPitch + 2 * slot + 1];
    const float scale = s.w_scale[slot][output];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      int first = dot16_bytes(w_low, low[j]);
      int second = dot16_bytes(w_high, high[j]);
      if constexpr (Format::kHasSubScales) {
        const int2 sub = s.w_sub[slot][output];
        first *= sub.x;
        second *= sub.y;
      }
      const int row = tx + 16 * j;
      acc[i][j] = __fmaf_rn(static_cast<float>(first + second) * s.x_scale[slot][row], scale, acc[i][j]);
      if constexpr (Format::kHasMin)
        acc[i][j] = __fmaf_rn(s.x_sum[slot][row], s.w_min[slot][output], acc[i][j]);
    }
  }
}

template <class Format>
__global__ void __launch_bounds__(kThreads, 2)
    mat_tile_kernel(const Product p, const QuantizedRows x, int rows) {
  __shared__ SharedTile<Format> s;
  const int tx = static_cast<int>(threadIdx.x) % 16;
  const int ty = static_cast<int>(threadIdx.x) / 16;
  const int first_output = static_cast<int>(blockIdx.x) * kTile;
  const int first_row = static_cast<int>(blockIdx.y) * kTile;
  float acc[kEach][kEach] = {};
  for (int first = 0; first < x.groups; first += kQuad) {
    if (first > 0) __syncthreads();
    fill_weights<Format>(p.weight, first_output / kTileRows, first, s);
    fill_rows<Format>(x, first_row, rows, first, s);
    __syncthreads();
    const int left = min(kQuad, x.groups - first);
    for (int slot = 0; slot < left; ++slot) add_group<Format>(s, slot, tx, ty, acc);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int output = first_output + ty + 16 * i;
      const int row = first_row + tx + 16 * j;
      if (output >= p.weight.rows || row >= rows) continue;
      float y = acc[i][j];
      if (p.bias != nullptr) y += p.bias[output];
      float* out = p.out + static_cast<size_t>(row) * p.weight.rows + output;
      *out = p.accumulate ? *out + y : y;
    }
  }
}

}  // namespace

void mat_tile(const Product& product, const QuantizedRows& x, int rows, cudaStream_t stream) {
  if (rows == 0) return;
  const dim3 grid((product.weight.rows + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  visit_quantized_format(product.weight.type, [&](auto format) {
    KVFOLD_LAUNCH((mat_tile_kernel<decltype(format)>), grid, kThreads, 0, stream, product, x, rows);
  });
}

}  // namespace kvfold::cuda
