// Occupancy of kernels on TU116 (sm_75), as the toolkit's own cuda_occupancy.h computes it. Reads lines of
// "registers threads shared_bytes" and prints the percentage of an SM's 32 warps that are resident for each.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  cudaOccDeviceProp device{};
  device.computeMajor = 7;
  device.computeMinor = 5;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 1024;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = 64 << 10;
  device.sharedMemPerBlockOptin = 64 << 10;
  device.numSms = 22;
  cudaOccFuncAttributes kernel{};
  kernel.maxThreadsPerBlock = 1024;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.maxDynamicSharedSizeBytes = 64 << 10;
  const cudaOccDeviceState state{};
  int threads = 0;
  unsigned long shared = 0;
  while (std::scanf("%d %d %lu", &kernel.numRegs, &threads, &shared) == 3) {
    kernel.sharedSizeBytes = shared;
    cudaOccResult result{};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0) !=
        CUDA_OCC_SUCCESS)
      return 1;
    std::printf("%d\n", 100 * result.activeBlocksPerMultiprocessor * ((threads + 31) / 32) / 32);
  }
}
