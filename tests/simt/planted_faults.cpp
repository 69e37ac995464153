// Kernels with a fault each, and the same kernels without it: what planted_faults_test.cpp runs.
//
//   planted_faults NAME planted|clean
//
// Exit 0: nothing was noticed, and the results are on stdout. 3: the launch failed. 4: a result is NaN. A
// sanitizer ends the program in its own way. The line that a report must name ends in `// FAULT name`.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/simt/device.h"

namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 3;
constexpr unsigned kAll = 0xFFFFFFFFU;

using Kernel = void(const float* in, float* out, bool planted);

// Everything below reads in[kThreads * kBlocks] and writes out of the same size, a thread its own element,
// unless it is the fault.
__device__ int element() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

__global__ void missing_barrier(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[element()];
  if (!planted) __syncthreads();
  out[element()] = tile[(threadIdx.x + 37) % kThreads];  // FAULT missing_barrier
}

// Nobody may write the next tile while others read this one.
__global__ void missing_second_barrier(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  float sum = 0;
  for (int step = 0; step < 2; ++step) {
    tile[threadIdx.x] = in[element()] + static_cast<float>(step);  // FAULT missing_second_barrier
    __syncthreads();
    sum += tile[(threadIdx.x + 37) % kThreads];  // FAULT missing_second_barrier
    if (!planted) __syncthreads();
  }
  out[element()] = sum;
}

__global__ void missing_warp_barrier(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[element()];
  if (!planted) __syncwarp();
  out[element()] = tile[threadIdx.x ^ 5U];  // FAULT missing_warp_barrier
}

// A shuffle brings lanes together and orders no memory.
__global__ void shuffle_for_a_barrier(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[element()];
  const float other = __shfl_xor_sync(kAll, in[element()], 5);
  if (!planted) __syncwarp();
  out[element()] = other + tile[threadIdx.x ^ 5U];  // FAULT shuffle_for_a_barrier
}

// A barrier of one half of the warp orders nothing in the other.
__global__ void half_a_warp_barrier(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[element()];
  const unsigned half = threadIdx.x % 32 < 16 ? 0xFFFFU : 0xFFFF0000U;
  __syncwarp(planted ? half : kAll);
  out[element()] = tile[threadIdx.x ^ 16U];  // FAULT half_a_warp_barrier
}

__global__ void write_write_race(const float* in, float* out, bool planted) {
  __shared__ float last;
  if (threadIdx.x == 3 || (planted && threadIdx.x == 99)) last = in[threadIdx.x];  // FAULT write_write_race
  __syncthreads();
  out[element()] = last;
}

__global__ void blocks_write_one_element(const float* in, float* out, bool planted) {
  if (threadIdx.x == 5) out[planted ? 0 : element()] = in[element()];  // FAULT blocks_write_one_element
}

// As if blocks ran one after the other.
__global__ void block_reads_its_neighbour(const float* in, float* out, bool planted) {
  const int from = planted && blockIdx.x > 0 ? element() - kThreads : element();
  out[element()] = in[element()];  // FAULT block_reads_its_neighbour
  __syncthreads();
  out[element()] += out[from] * 0.5F;  // FAULT block_reads_its_neighbour
}

__global__ void absent_lanes(const float* in, float* out, bool planted) {
  float value = in[element()];
  if (threadIdx.x % 32 < 16) {
    value += __shfl_xor_sync(planted ? kAll : 0xFFFFU, value, 4);  // FAULT absent_lanes
  }
  out[element()] = value;
}

__global__ void shuffle_from_outside(const float* in, float* out, bool planted) {
  float value = in[element()];
  if (threadIdx.x % 32 < 16)
    value += __shfl_sync(0xFFFFU, value, planted ? 20 : 2);  // FAULT shuffle_from_outside
  out[element()] = value;
}

__global__ void divergent_barrier(const float* in, float* out, bool planted) {
  out[element()] = in[element()];
  if (!planted || threadIdx.x < 64) __syncthreads();  // FAULT divergent_barrier
}

__global__ void return_before_barrier(const float* in, float* out, bool planted) {
  out[element()] = in[element()];
  if (planted && threadIdx.x >= 96) return;
  __syncthreads();  // FAULT return_before_barrier
}

// As in a helper that sees a pointer and no array.
__device__ float read_at(const float* row, unsigned column) {
  return row[column];  // FAULT shared_out_of_bounds // FAULT template_shared_out_of_bounds
}

__global__ void shared_out_of_bounds(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  __shared__ float other[kThreads];
  tile[threadIdx.x] = other[threadIdx.x] = in[element()];
  __syncthreads();
  float (*volatile helper)(const float*, unsigned) = read_at;
  out[element()] = helper(tile, threadIdx.x + (planted ? 1 : 0)) + other[threadIdx.x];
}

__global__ void dynamic_shared_out_of_bounds(const float* in, float* out, bool planted) {
  KVFOLD_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = in[element()];
  __syncthreads();
  out[element()] = tile[threadIdx.x + (planted ? 1 : 0)];  // FAULT dynamic_shared_out_of_bounds
}

__global__ void device_out_of_bounds(const float* in, float* out, bool planted) {
  out[element()] = in[element() + (planted ? 1 : 0)];  // FAULT device_out_of_bounds
}

__global__ void device_write_before_begin(const float* in, float* out, bool planted) {
  out[element() - (planted ? 1 : 0)] = in[element()];  // FAULT device_write_before_begin
}

__global__ void misaligned_wide_load(const float* in, float* out, bool planted) {
  const unsigned from = threadIdx.x % 16 * 4 + (planted ? 2 : 0);
  const float4 wide = *reinterpret_cast<const float4*>(in + from);  // FAULT misaligned_wide_load
  out[element()] = wide.x + wide.w;
}

__global__ void uninitialised_shared(const float* in, float* out, bool planted) {
  __shared__ float part[4];
  if (threadIdx.x % 32 == 0 && !(planted && threadIdx.x == 64)) part[threadIdx.x / 32] = in[element()];
  __syncthreads();
  out[element()] = part[0] + part[1] + part[2] + part[3];  // FAULT uninitialised_shared
}

// GCC does not treat the variables of templates as it does others.
template <int kStride>
__global__ void template_missing_barrier(const float* in, float* out, bool planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[element()];
  if (!planted) __syncthreads();
  out[element()] = tile[(threadIdx.x + kStride) % kThreads];  // FAULT template_missing_barrier
}

template <int kWarps>
__global__ void template_uninitialised_shared(const float* in, float* out, bool planted) {
  __shared__ float part[kWarps];
  if (threadIdx.x % 32 == 0 && !(planted && threadIdx.x == 64)) part[threadIdx.x / 32] = in[element()];
  __syncthreads();
  float sum = 0;
  for (const float& value : part) sum += value;  // FAULT template_uninitialised_shared
  out[element()] = sum;
}

template <int kSize>
__global__ void template_shared_out_of_bounds(const float* in, float* out, bool planted) {
  __shared__ float tile[kSize];
  tile[threadIdx.x] = in[element()];
  __syncthreads();
  float (*volatile helper)(const float*, unsigned) = read_at;
  out[element()] = helper(tile, threadIdx.x + (planted ? 1 : 0));
}

float counter = 0;

__global__ void static_variable(const float* in, float* out, bool planted) {
  if (planted && threadIdx.x == 0) counter = in[element()];  // FAULT static_variable
  out[element()] = in[element()] + counter * 0.0F;
}

__global__ void copy(const float* in, float* out, bool /*planted*/) {
  out[element()] = in[element()];  // FAULT host_pointer // FAULT freed_memory
}

// The sum depends on who comes first.
__global__ void order_of_threads(const float* in, float* out, bool planted) {
  if (planted) {
    atomicAdd(&out[0], in[element()]);
  } else if (element() == 0) {
    float sum = 0;
    for (int i = 0; i < kThreads * kBlocks; ++i) sum += in[i];
    out[0] += sum;
  }
}

struct Case {
  const char* name;
  Kernel* kernel;
};

const Case kCases[] = {
    {"missing_barrier", missing_barrier},
    {"missing_second_barrier", missing_second_barrier},
    {"missing_warp_barrier", missing_warp_barrier},
    {"shuffle_for_a_barrier", shuffle_for_a_barrier},
    {"half_a_warp_barrier", half_a_warp_barrier},
    {"write_write_race", write_write_race},
    {"blocks_write_one_element", blocks_write_one_element},
    {"block_reads_its_neighbour", block_reads_its_neighbour},
    {"absent_lanes", absent_lanes},
    {"shuffle_from_outside", shuffle_from_outside},
    {"divergent_barrier", divergent_barrier},
    {"return_before_barrier", return_before_barrier},
    {"shared_out_of_bounds", shared_out_of_bounds},
    {"dynamic_shared_out_of_bounds", dynamic_shared_out_of_bounds},
    {"device_out_of_bounds", device_out_of_bounds},
    {"device_write_before_begin", device_write_before_begin},
    {"misaligned_wide_load", misaligned_wide_load},
    {"uninitialised_shared", uninitialised_shared},
    {"template_missing_barrier", template_missing_barrier<37>},
    {"template_uninitialised_shared", template_uninitialised_shared<4>},
    {"template_shared_out_of_bounds", template_shared_out_of_bounds<kThreads>},
    {"static_variable", static_variable},
    {"host_pointer", copy},
    {"freed_memory", copy},
    {"order_of_threads", order_of_threads},
};

int run(const Case& c, bool planted) {
  constexpr int kCount = kThreads * kBlocks;
  constexpr size_t kBytes = kCount * sizeof(float);
  const std::string name = c.name;
  std::vector<float> host(kCount);
  for (int i = 0; i < kCount; ++i) host[i] = std::ldexp(1.0F + static_cast<float>(i) / 777, i % 40 - 20);
  float* in = nullptr;
  float* out = nullptr;
  if (cudaMalloc(&in, kBytes) != cudaSuccess || cudaMalloc(&out, kBytes) != cudaSuccess) return 3;
  cudaMemcpy(in, host.data(), kBytes, cudaMemcpyHostToDevice);
  cudaMemset(out, 0, kBytes);
  cudaDeviceSynchronize();
  const float* source = in;
  if (planted && name == "host_pointer") source = host.data();
  if (planted && name == "freed_memory") cudaFree(in);
  KVFOLD_LAUNCH(c.kernel, kBlocks, kThreads, kThreads * sizeof(float), nullptr, source, out, planted);
  if (cudaDeviceSynchronize() != cudaSuccess) return 3;
  cudaMemcpy(host.data(), out, kBytes, cudaMemcpyDeviceToHost);
  if (!planted || name != "freed_memory") cudaFree(in);
  cudaFree(out);
  for (const float value : host) {
    if (std::isnan(value)) {
      std::fprintf(stderr, "a result is NaN\n");
      return 4;
    }
    std::printf("%.9g\n", static_cast<double>(value));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3) {
    for (const Case& c : kCases) {
      if (std::strcmp(argv[1], c.name) == 0) return run(c, std::strcmp(argv[2], "planted") == 0);
    }
  }
  std::fprintf(stderr, "usage: planted_faults NAME planted|clean\n");
  return 2;
}
