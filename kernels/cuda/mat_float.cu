// Products with f32 activations: of float weights, and of quantised ones when activations are to stay exact.
//
// dot16 (kernels/cpu/cpu.h) sums an output in 16 lanes by column. Four threads of a warp share a weight row
// and keep four of the lanes each; so a warp works on a tile of 8 rows, and its loads are contiguous. The
// lanes are folded by shuffles in dot16's order.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lanes.cuh"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlockOutputs = kWarps * kTileRows;
constexpr int kChunk = 16;  // groups of activations in shared memory together

// A thread's 8 weights of one group: columns 4c .. 4c + 3, and the same 16 columns on.
struct Eight {
  float low[4];
  float high[4];
};

template <class Format>
__device__ __forceinline__ Eight load_eight(const PackedView& w, int tile, int group, int lane) {
  Eight out;
  const size_t piece = (static_cast<size_t>(tile) * w.groups + group) * 32 + lane;
  if constexpr (Planes<Format>::kIntegers == 128) {
    const auto* from = reinterpret_cast<const float4*>(w.integers);
    const float4 low = from[(piece - lane) * 2 + lane];
    const float4 high = from[(piece - lane) * 2 + 32 + lane];
    out = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
  } else if constexpr (Planes<Format>::kIntegers == 64) {
    const uint4 bits = reinterpret_cast<const uint4*>(w.integers)[piece];
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
    const auto value = [](uint32_t b) {
      if constexpr (Format::kType == WeightType::kBF16) return __uint_as_float(b << 16);
      return from_half(b);
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out.low[2 * i] = value(pairs[i] & 0xFFFFU);
      out.low[2 * i + 1] = value(pairs[i] >> 16);
      out.high[2 * i] = value(pairs[2 + i] & 0xFFFFU);
      out.high[2 * i + 1] = value(pairs[2 + i] >> 16);
    }
  } else {
    using P = Planes<Format>;
    const int row = lane / 4;
    const int quarter = lane % 4;
    const size_t unit = (static_cast<size_t>(tile) * w.groups + group) * kTileRows + row;
    LaneGroup<Format> part;
    part.clear();
    part.load_word(w, unit, quarter);
    part.load_super(w, (static_cast<size_t>(tile) * ((w.groups + 7) / 8) + group / 8) * kTileRows + row);
    const uint32_t low = part.signed_word(quarter);
    const uint32_t high = part.signed_word(quarter + 4);
    const float scale = part.scale();
    const float min = part.min();
    const auto value = [&](uint32_t word, int b, int half) {
      int q = static_cast<int>(static_cast<signed char>(word >> (8 * b) & 0xFFU));
      if constexpr (Format::kHasSubScales) q *= part.sub(half);
      const float scaled = scale * static_cast<float>(q);
      return Format::kHasMin ? scaled + min : scaled;
    };
    static_assert(P::kIntegers <= 32);
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      out.low[b] = value(low, b, 0);
      out.high[b] = value(high, b, 1);
    }
  }
  return out;
}

template <class Format, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    mat_float_kernel(const Product p, const float* x, int all_rows) {
  __shared__ float4 shared[kRows * kChunk * 8];
  const PackedView& w = p.weight;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int quarter = lane % 4;
  const int tile = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const int rows = min(kRows, all_rows - first_row);
  const bool real = tile * kTileRows < w.rows;
  float lanes[kRows][4] = {};
  for (int chunk = 0; chunk < w.groups; chunk += kChunk) {
    if (chunk > 0) __syncthreads();
    auto* to = reinterpret_cast<float*>(shared);
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunk * kGroup; i += kThreads) {
      const int row = i / (kChunk * kGroup);
      const int column = chunk * kGroup + i % (kChunk * kGroup);
      to[i] = row < rows && column < w.columns ? x[static_cast<size_t>(first_row + row) * w.columns + column]
                                               : 0.0F;
    }
    __syncthreads();
    const int end = real ? min(kChunk, w.groups - chunk) : 0;
#pragma unroll 4
    for (int g = 0; g < end; ++g) {
      const Eight eight = load_eight<Format>(w, tile, chunk + g, lane);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float4 low = shared[(m * kChunk + g) * 8 + quarter];
        const float4 high = shared[(m * kChunk + g) * 8 + 4 + quarter];
        const float a[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          lanes[m][k] = __fmaf_rn(eight.low[k], a[k], lanes[m][k]);
          lanes[m][k] = __fmaf_rn(eight.high[k], a[4 + k], lanes[m][k]);
        }
      }
    }
  }
  const int output = tile * kTileRows + lane / 4;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    // 16 lanes to 8, to 4, and the last as fold16 has it.
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      lanes[m][k] += __shfl_xor_sync(kAllLanes, lanes[m][k], 2);
      lanes[m][k] += __shfl_xor_sync(kAllLanes, lanes[m][k], 1);
    }
    float y = (lanes[m][0] + lanes[m][2]) + (lanes[m][1] + lanes[m][3]);
    if (m % 4 != quarter || m >= rows || output >= w.rows) continue;
    if (p.bias != nullptr) y += p.bias[output];
    float* out = p.out + static_cast<size_t>(first_row + m) * w.rows + output;
    *out = p.accumulate ? *out + y : y;
  }
}

// Rows of a table, or all rows of a matrix, as f32. A thread makes 8 columns.
template <class Format>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const PackedView w, const int32_t* ids, int first, float* out) {
  const int row = ids != nullptr ? ids[blockIdx.x] : first + static_cast<int>(blockIdx.x);
  float* to = out + static_cast<size_t>(blockIdx.x) * w.columns;
  for (int i = static_cast<int>(threadIdx.x); i < w.groups * 4; i += kThreads) {
    const int quarter = i % 4;
    const Eight eight = load_eight<Format>(w, row / kTileRows, i / 4, row % kTileRows * 4 + quarter);
    for (int k = 0; k < 4; ++k) {
      const int column = i / 4 * kGroup + 4 * quarter + k;
      if (column < w.columns) to[column] = eight.low[k];
      if (column + 16 < w.columns) to[column + 16] = eight.high[k];
    }
  }
}

template <class Visit>
void visit_format(WeightType type, Visit visit) {
  switch (type) {
    case WeightType::kF32:
      return visit(F32{});
    case WeightType::kF16:
      return visit(F16{});
    case WeightType::kBF16:
      return visit(BF16{});
    default:
      return visit_quantized_format(type, visit);
  }
}

}  // namespace

void mat_float(const Product& product, const float* x, int rows, cudaStream_t stream) {
  if (rows == 0) return;
  const int blocks = (product.weight.rows + kBlockOutputs - 1) / kBlockOutputs;
  visit_format(product.weight.type, [&](auto format) {
    using Format = decltype(format);
    if (rows == 1) {
      KVFOLD_LAUNCH((mat_float_kernel<Format, 1>), dim3(blocks, 1), kThreads, 0, stream, product, x, rows);
    } else {
      KVFOLD_LAUNCH((mat_float_kernel<Format, 8>), dim3(blocks, (rows + 7) / 8), kThreads, 0, stream, product,
                    x, rows);
    }
  });
}

void decode_rows(const PackedView& table, const int32_t* ids, int first, int count, float* out,
                 cudaStream_t stream) {
  if (count == 0) return;
  visit_format(table.type, [&](auto format) {
    KVFOLD_LAUNCH((decode_kernel<decltype(format)>), count, kThreads, 0, stream, table, ids, first, out);
  });
}

}  // namespace kvfold::cuda
