// Occupancy of kernels on TU116 (sm_75), as the toolkit's own cuda_occupancy.h computes it. Reads lines of
// "registers threads shared_bytes launch type heads width", where the launch is "attention" (width:
// head_dim), "norm" (width: columns) or another that adds no shared memory; prints the bytes that it adds,
// and the percentage of an SM's 32 warps that are resident.
#include <cuda_occupancy.h>

#include <cstdio>
#include <string_view>

#include "kernels/cuda/scratch.h"

namespace {

constexpr size_t kMostShared = size_t{64} << 10;

size_t dynamic_shared(std::string_view launch, int type, int heads, int width) {
  if (launch == "attention")
    return kvfold::cuda::attention_shared(static_cast<kvfold::CacheType>(type), heads, width);
  return launch == "norm" ? kvfold::cuda::norm_shared(width) : 0;
}

cudaOccDeviceProp tu116() {
  cudaOccDeviceProp device{};
  device.computeMajor = 7;
  device.computeMinor = 5;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 1024;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = kMostShared;
  device.sharedMemPerBlockOptin = kMostShared;
  device.numSms = 22;
  return device;
}

}  // namespace

int main() {
  const cudaOccDeviceProp device = tu116();
  const cudaOccDeviceState state{};
  cudaOccFuncAttributes kernel{};
  kernel.maxThreadsPerBlock = 1024;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;  // as allow_shared() does
  int threads = 0;
  char launch[16];
  int type = 0;
  int heads = 0;
  int width = 0;
  while (std::scanf("%d %d %zu %15s %d %d %d", &kernel.numRegs, &threads, &kernel.sharedSizeBytes, launch,
                    &type, &heads, &width) == 7) {
    const size_t dynamic = dynamic_shared(launch, type, heads, width);
    kernel.maxDynamicSharedSizeBytes = kMostShared - kernel.sharedSizeBytes;
    cudaOccResult result{};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic) !=
        CUDA_OCC_SUCCESS)
      return 1;
    std::printf("%zu %d\n", dynamic, 100 * result.activeBlocksPerMultiprocessor * ((threads + 31) / 32) / 32);
  }
}
