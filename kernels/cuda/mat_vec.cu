// Products of 1 to 16 rows of int8 activations with quantised weights.
//
// A block of 8 warps makes 64 outputs: it brings the activations to shared memory (they are read once for 64
// rows of weights, which keeps that under 4% of the weights' own bytes), and each warp walks along one tile
// of 8 weight rows, four groups of 32 columns at a time, with the loads of the next groups under way while it
// works on these. Each lane makes the term of one (row, group) with dp4a; the four terms of a row then meet
// through shuffles and are added to its sum in column order. So every output is summed in the one order that
// kernels/cpu/cpu.h gives, whatever the number of rows.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lanes.cuh"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlockOutputs = kWarps * kTileRows;
constexpr int kQuad = 4;  // groups that a warp reads at once

struct Products {
  Product product[kMostProducts];
  int first_block[kMostProducts + 1];
  QuantizedRows x;
  int rows;
};

// Groups of activations that are in shared memory together; a multiple of what a warp has in flight.
constexpr int chunk_groups(int rows) { return rows == 1 ? 128 : rows == 16 ? 32 : 64; }
// Quads of groups that a lane has in flight.
template <class Format>
constexpr int ahead() {
  return Planes<Format>::kIntegers == 32 || Planes<Format>::kHigh == 8 ? 2 : 4;
}

template <class Format, int kRows>
struct SharedRows {
  static constexpr int kGroups = chunk_groups(kRows);
  static constexpr bool kSums = Format::kHasMin || Planes<Format>::kOffset != 0;
  uint4 q[kRows * kGroups * 2];
  float scales[kRows * kGroups];
  // kOffset times the sum of each half group, to take the weights' offset off again; or, for formats with a
  // min, the bits of scale * sum.
  int2 sums[kSums ? kRows * kGroups : 1];
};

// Groups first .. first + kGroups - 1 of all rows. Lanes take 16 bytes each: half a group.
template <class Format, int kRows>
__device__ void fill(const QuantizedRows& x, int rows, int first, SharedRows<Format, kRows>& to) {
  using Shared = SharedRows<Format, kRows>;
  const int count = min(Shared::kGroups, x.groups - first);
  for (int row = 0; row < kRows; ++row) {
    // Whole warps go round, as the two halves of a group meet in a shuffle.
    for (int base = 0; base < 2 * count; base += kThreads) {
      const int item = base + static_cast<int>(threadIdx.x);
      const int group = item / 2;
      const bool real = item < 2 * count && row < rows;
      uint4 q = make_uint4(0, 0, 0, 0);
      float scale = 0;
      if (real) {
        const size_t at = static_cast<size_t>(row) * x.groups + first + group;
        q = reinterpret_cast<const uint4*>(x.q)[2 * at + item % 2];
        if (item % 2 == 0) scale = x.scales[at];
      }
      int sum = 0;
      if constexpr (Shared::kSums) {
        constexpr int kOnes = 0x01010101;
        sum = __dp4a(static_cast<int>(q.x), kOnes, sum);
        sum = __dp4a(static_cast<int>(q.y), kOnes, sum);
        sum = __dp4a(static_cast<int>(q.z), kOnes, sum);
        sum = __dp4a(static_cast<int>(q.w), kOnes, sum);
        const int other = __shfl_xor_sync(kAllLanes, sum, 1);
        if (item < 2 * count && item % 2 == 0) {
          int2 sums = make_int2(Planes<Format>::kOffset * sum, Planes<Format>::kOffset * other);
          if constexpr (Format::kHasMin) sums.x = __float_as_int(scale * static_cast<float>(sum + other));
          to.sums[row * Shared::kGroups + group] = sums;
        }
      }
      if (item < 2 * count) {
        to.q[row * Shared::kGroups * 2 + item] = q;
        if (item % 2 == 0) to.scales[row * Shared::kGroups + group] = scale;
      }
    }
  }
}

// The exact integer product of a lane's weights with one row's group.
template <class Format, int kRows>
__device__ __forceinline__ int integer_product(const uint32_t (&words)[8], const LaneGroup<Format>& w,
                                               const SharedRows<Format, kRows>& x, int at) {
  const uint4 low = x.q[2 * at];
  const uint4 high = x.q[2 * at + 1];
  int first = 0;
  int second = 0;
  first = __dp4a(static_cast<int>(words[0]), static_cast<int>(low.x), first);
  second = __dp4a(static_cast<int>(words[4]), static_cast<int>(high.x), second);
  first = __dp4a(static_cast<int>(words[1]), static_cast<int>(low.y), first);
  second = __dp4a(static_cast<int>(words[5]), static_cast<int>(high.y), second);
  first = __dp4a(static_cast<int>(words[2]), static_cast<int>(low.z), first);
  second = __dp4a(static_cast<int>(words[6]), static_cast<int>(high.z), second);
  first = __dp4a(static_cast<int>(words[3]), static_cast<int>(low.w), first);
  second = __dp4a(static_cast<int>(words[7]), static_cast<int>(high.w), second);
  if constexpr (Planes<Format>::kOffset != 0) {
    const int2 sums = x.sums[at];
    first -= sums.x;
    second -= sums.y;
  }
  if constexpr (Format::kHasSubScales) return w.sub(0) * first + w.sub(1) * second;
  return first + second;
}

// Adds one quad's terms to the sums, group after group. `left`: groups of the quad that exist.
template <class Format, int kRows>
__device__ __forceinline__ void add_quad(const LaneGroup<Format>& w, const SharedRows<Format, kRows>& x,
                                         int first, int left, int row, float (&acc)[kRows]) {
  constexpr int kGroups = SharedRows<Format, kRows>::kGroups;
  const int mine = first + static_cast<int>(threadIdx.x % 32) / kTileRows;
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i] = w.word(i);
  const float scale = w.scale();
  const float min = w.min();
  float terms[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const int at = m * kGroups + mine;
    terms[m] = left * kTileRows <= static_cast<int>(threadIdx.x % 32)
                   ? 0.0F
                   : static_cast<float>(integer_product<Format, kRows>(words, w, x, at)) * x.scales[at];
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    if (j >= left) break;  // all lanes alike
    const float group_scale = __shfl_sync(kAllLanes, scale, j * kTileRows + row);
    const float group_min = Format::kHasMin ? __shfl_sync(kAllLanes, min, j * kTileRows + row) : 0.0F;
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      acc[m] = __fmaf_rn(__shfl_sync(kAllLanes, terms[m], j * kTileRows + row), group_scale, acc[m]);
      if constexpr (Format::kHasMin)
        acc[m] = __fmaf_rn(__int_as_float(x.sums[m * kGroups + first + j].x), group_min, acc[m]);
    }
  }
}

template <class Format, int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 1 ? 3 : 2) mat_vec_kernel(const Products p) {
  using Shared = SharedRows<Format, kRows>;
  constexpr int kAhead = ahead<Format>();
  static_assert(Shared::kGroups % (kAhead * kQuad) == 0);
  __shared__ Shared x;
  const int block = static_cast<int>(blockIdx.x);
  const int which = block >= p.first_block[2] ? 2 : block >= p.first_block[1] ? 1 : 0;
  const Product& product = p.product[which];
  const PackedView& w = product.weight;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % kTileRows;
  const int tile = (block - p.first_block[which]) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const bool real = tile * kTileRows < w.rows;
  const int groups = p.x.groups;
  const int supers = (groups + 7) / 8;

  LaneGroup<Format> next[kAhead];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int group = first + i * kQuad + lane / kTileRows;
      next[i].clear();
      if (!real || group >= groups) continue;
      next[i].load(w, (static_cast<size_t>(tile) * groups + group) * kTileRows + row);
      // Two quads are the 256 columns that share one of these.
      if (i % 2 == 0) {
        next[i].load_super(w, (static_cast<size_t>(tile) * supers + group / 8) * kTileRows + row);
      } else {
        next[i].supers = next[i - 1].supers;
      }
    }
  };

  float acc[kRows] = {};
  load(0);
  for (int chunk = 0; chunk < groups; chunk += Shared::kGroups) {
    if (chunk > 0) __syncthreads();
    fill<Format, kRows>(p.x, p.rows, chunk, x);
    __syncthreads();
    const int end = min(chunk + Shared::kGroups, groups);
    for (int first = chunk; first < end; first += kAhead * kQuad) {
      LaneGroup<Format> now[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) now[i] = next[i];
      load(first + kAhead * kQuad);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int quad = first + i * kQuad;
        if (quad < end) add_quad<Format, kRows>(now[i], x, quad - chunk, min(kQuad, end - quad), row, acc);
      }
    }
  }

  // All lanes of a row hold its sums; each of the four writes every fourth row of activations.
  const int output = tile * kTileRows + row;
  if (output >= w.rows) return;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m % kQuad != lane / kTileRows || m >= p.rows) continue;
    float y = acc[m];
    if (product.bias != nullptr) y += product.bias[output];
    float* out = product.out + static_cast<size_t>(m) * w.rows + output;
    *out = product.accumulate ? *out + y : y;
  }
}

template <class Format>
void launch(const Products& p, int blocks, cudaStream_t stream) {
  if (p.rows == 1) {
    KVFOLD_LAUNCH((mat_vec_kernel<Format, 1>), blocks, kThreads, 0, stream, p);
  } else if (p.rows <= 4) {
    KVFOLD_LAUNCH((mat_vec_kernel<Format, 4>), blocks, kThreads, 0, stream, p);
  } else if (p.rows <= 8) {
    KVFOLD_LAUNCH((mat_vec_kernel<Format, 8>), blocks, kThreads, 0, stream, p);
  } else {
    KVFOLD_LAUNCH((mat_vec_kernel<Format, 16>), blocks, kThreads, 0, stream, p);
  }
}

}  // namespace

void mat_vec(const Product* products, int count, const QuantizedRows& x, int rows, cudaStream_t stream) {
  Products p{};
  int blocks = 0;
  for (int i = 0; i < kMostProducts; ++i) {
    p.first_block[i] = blocks;
    if (i >= count) continue;
    p.product[i] = products[i];
    blocks += (products[i].weight.rows + kBlockOutputs - 1) / kBlockOutputs;
  }
  // Products that are not there begin behind the last block.
  for (int i = count; i < kMostProducts; ++i) p.first_block[i] = blocks;
  p.first_block[kMostProducts] = blocks;
  p.x = x;
  p.rows = rows;
  if (blocks == 0 || rows == 0) return;
  visit_quantized_format(products[0].weight.type,
                         [&](auto format) { launch<decltype(format)>(p, blocks, stream); });
}

}  // namespace kvfold::cuda
