// What happens to rows of activations between the products: norm, gating, quantisation.
#include "kernels/cpu/math.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lanes.cuh"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// One group of 32 values, one a lane of a full warp, to int8.
__device__ __forceinline__ void quantize_group(float v, const QuantizedRows& out, size_t group) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float largest = fmaxf(0.0F, fabsf(v));
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  const float inverse = largest > 0 ? 127.0F / largest : 0.0F;
  v *= inverse;
  v = v > -127.0F ? v : -127.0F;
  v = v < 127.0F ? v : 127.0F;
  out.q[group * kGroup + lane] = static_cast<int8_t>(__float2int_rn(v));
  if (lane == 0) out.scales[group] = largest / 127.0F;
}

__device__ __forceinline__ float gated(float gate, float up) { return (gate / (1.0F + exp_f32(-gate))) * up; }

// A warp a group. `up` is null, or what silu(x) is multiplied with.
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* x, const float* up, int columns, const QuantizedRows out) {
  const int group = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (group >= out.groups) return;
  const int column = group * kGroup + static_cast<int>(threadIdx.x % 32);
  const size_t row = blockIdx.x;
  float v = 0;
  if (column < columns) {
    v = x[row * columns + column];
    if (up != nullptr) v = gated(v, up[row * columns + column]);
  }
  quantize_group(v, out, row * out.groups + group);
}

// 1 / root of the mean square of a row that lies in shared memory: dot16, by 16 threads.
__device__ float inverse_rms(const float* row, int columns, float epsilon, float* lanes) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) {
    float sum = 0;
    for (int i = lane; i < columns; i += 16) sum = __fmaf_rn(row[i], row[i], sum);
    lanes[lane] = sum;
  }
  __syncthreads();
  return 1.0F / sqrtf(fold16(lanes) / static_cast<float>(columns) + epsilon);
}

// A block a row; to floats where `floats` is given, else to int8.
__global__ void __launch_bounds__(kThreads) norm_kernel(const float* x, const float* weight, float epsilon,
                                                        int columns, float* floats, const QuantizedRows out) {
  KVFOLD_DYNAMIC_SHARED(float, row);
  __shared__ float lanes[16];
  const float* from = x + static_cast<size_t>(blockIdx.x) * columns;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += kThreads) row[i] = from[i];
  __syncthreads();
  const float scale = inverse_rms(row, columns, epsilon, lanes);
  if (floats != nullptr) {
    float* to = floats + static_cast<size_t>(blockIdx.x) * columns;
    for (int i = static_cast<int>(threadIdx.x); i < columns; i += kThreads)
      to[i] = (row[i] * scale) * weight[i];
    return;
  }
  for (int group = static_cast<int>(threadIdx.x) / 32; group < out.groups; group += kWarps) {
    const int column = group * kGroup + static_cast<int>(threadIdx.x % 32);
    const float v = column < columns ? (row[column] * scale) * weight[column] : 0.0F;
    quantize_group(v, out, static_cast<size_t>(blockIdx.x) * out.groups + group);
  }
}

__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(const float* gate, const float* up, size_t count, float* out) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) out[i] = gated(gate[i], up[i]);
}

__global__ void __launch_bounds__(kThreads) finish_kernel(const float* y, const Product p, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float v = y[i];
  if (p.bias != nullptr) v += p.bias[i % static_cast<size_t>(p.weight.rows)];
  p.out[i] = p.accumulate ? p.out[i] + v : v;
}

constexpr size_t kNormFixed = 16 * sizeof(float);  // the kernel's own shared memory

void launch_norm(const float* x, const float* norm, float epsilon, int rows, int columns, float* floats,
                 const QuantizedRows& out, cudaStream_t stream) {
  if (rows == 0) return;
  const size_t shared = norm_shared(columns);
  allow_shared(norm_kernel, kNormFixed, shared);
  KVFOLD_LAUNCH(norm_kernel, rows, kThreads, shared, stream, x, norm, epsilon, columns, floats, out);
}

unsigned blocks_of(size_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

}  // namespace

void quantize(const float* x, int rows, int columns, const QuantizedRows& out, cudaStream_t stream) {
  swiglu_quantize(x, nullptr, rows, columns, out, stream);
}

void swiglu_quantize(const float* gate, const float* up, int rows, int columns, const QuantizedRows& out,
                     cudaStream_t stream) {
  if (rows == 0) return;
  // Rows along x, the only direction that takes more than 65,535 blocks.
  const dim3 grid(rows, (out.groups + kWarps - 1) / kWarps);
  KVFOLD_LAUNCH(quantize_kernel, grid, kThreads, 0, stream, gate, up, columns, out);
}

void norm_quantize(const float* x, const float* norm, float epsilon, int rows, int columns,
                   const QuantizedRows& out, cudaStream_t stream) {
  launch_norm(x, norm, epsilon, rows, columns, nullptr, out, stream);
}

void norm(const float* x, const float* norm, float epsilon, int rows, int columns, float* out,
          cudaStream_t stream) {
  launch_norm(x, norm, epsilon, rows, columns, out, {}, stream);
}

int most_norm_columns(size_t shared_bytes) {
  return static_cast<int>((shared_bytes - kNormFixed) / sizeof(float));
}

void swiglu(const float* gate, const float* up, size_t count, float* out, cudaStream_t stream) {
  if (count > 0) KVFOLD_LAUNCH(swiglu_kernel, blocks_of(count), kThreads, 0, stream, gate, up, count, out);
}

void finish_product(const float* y, const Product& product, int rows, cudaStream_t stream) {
  const size_t count = static_cast<size_t>(rows) * product.weight.rows;
  if (count > 0) KVFOLD_LAUNCH(finish_kernel, blocks_of(count), kThreads, 0, stream, y, product, count);
}

}  // namespace kvfold::cuda
