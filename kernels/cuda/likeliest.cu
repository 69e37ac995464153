// The k largest of each row of logits, in order.
//
// A value and its index make one key of 64 bits, so that keys alone decide: a larger value has the larger
// key, of equal values the lower index. A block keeps 4096 keys in registers and brings them out from the
// top, one a round; what all blocks of a row brought out goes through the same again until one block is left
// (a second launch suffices for 262,144 values and 64 of them, or for more values and fewer of them).
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lanes.cuh"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kEach = 16;  // keys of a thread
constexpr int kChunk = kThreads * kEach;
static_assert(kChunk == kLikeliestChunk);

__device__ __forceinline__ uint64_t key_of(const float* from, int i) {
  // NaN is below everything, and -0 is 0.
  const float x = from[i];
  const uint32_t bits = x == 0.0F ? 0U : __float_as_uint(x);
  const uint32_t ordered = !(x == x) ? 0U : (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<uint64_t>(ordered) << 32 | (0xFFFFFFFFU - static_cast<uint32_t>(i));
}
__device__ __forceinline__ uint64_t key_of(const uint64_t* from, int i) { return from[i]; }

// grid: x chunk of 4096, y row. from [rows][count], to [rows][chunks][k]; a key of 0 is none.
template <class From>
__global__ void __launch_bounds__(kThreads)
    likeliest_kernel(const From* from, int count, int k, uint64_t* to) {
  __shared__ uint64_t warps[2][kWarps];
  const From* row = from + static_cast<size_t>(blockIdx.y) * count;
  uint64_t keys[kEach];
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = static_cast<int>(blockIdx.x) * kChunk + n * kThreads + static_cast<int>(threadIdx.x);
    keys[n] = i < count ? key_of(row, i) : 0;
  }
  uint64_t* out = to + (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * k;
  uint64_t last = ~uint64_t{0};
  for (int round = 0; round < k; ++round) {
    uint64_t best = 0;
#pragma unroll
    for (int n = 0; n < kEach; ++n)
      if (keys[n] < last && keys[n] > best) best = keys[n];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(kAllLanes, best, step);
      best = other > best ? other : best;
    }
    // Two sets in turn: a warp that is ahead writes the one that nobody reads any more.
    if (threadIdx.x % 32 == 0) warps[round % 2][threadIdx.x / 32] = best;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      if (warps[round % 2][w] > best) best = warps[round % 2][w];
    if (threadIdx.x == 0) out[round] = best;
    last = best;
  }
}

}  // namespace

const uint64_t* likeliest(const float* x, int rows, int columns, int k, uint64_t* scratch,
                          cudaStream_t stream) {
  int chunks = likeliest_chunks(columns);
  KVFOLD_LAUNCH((likeliest_kernel<float>), dim3(chunks, rows), kThreads, 0, stream, x, columns, k, scratch);
  while (chunks > 1) {
    const uint64_t* from = scratch;
    const int count = chunks * k;
    scratch += static_cast<size_t>(rows) * count;
    chunks = likeliest_chunks(count);
    KVFOLD_LAUNCH((likeliest_kernel<uint64_t>), dim3(chunks, rows), kThreads, 0, stream, from, count, k,
                  scratch);
  }
  return scratch;
}

}  // namespace kvfold::cuda
