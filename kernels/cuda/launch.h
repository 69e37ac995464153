// The CUDA runtime, and what differs between nvcc and the host: how a kernel is launched, how it names its
// dynamic shared memory, and a few functions. Tests compile the same kernels for the host against headers of
// the runtime's names (tests/simt/include), which define both macros in their own way.
#pragma once

#include <cuda_runtime.h>

#if defined(__CUDACC__)
#include <cuda_fp16.h>

#define KVFOLD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define KVFOLD_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char kvfold_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(kvfold_dynamic_shared)
#endif

#include <cmath>

#include "kernels/half.h"

namespace kvfold::cuda {

// Of a block of any kernel, in bytes; of one that asks for more, as much as the device has for a block.
inline constexpr size_t kCommonShared = size_t{48} << 10;

// Before the launch of a kernel whose own __shared__ variables take `fixed` bytes. All that the device has is
// asked for, so that a step recorded earlier with more keeps what it needs.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t fixed, size_t dynamic) {
  if (fixed + dynamic <= kCommonShared) return;
  int device = 0;
  int most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most - static_cast<int>(fixed));
}

__device__ __forceinline__ float from_half(uint32_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
  return f16_to_f32(static_cast<uint16_t>(bits));
#endif
}
__device__ __forceinline__ uint16_t to_half(float x) {
#if defined(__CUDACC__)
  return __half_as_ushort(__float2half_rn(x));
#else
  return f32_to_f16(x);
#endif
}

// cos and sin of pi x, |x| <= 1, in f64.
__device__ __forceinline__ void turn_by_pi(double x, double& c, double& s) {
#if defined(__CUDACC__)
  c = cospi(x);
  s = sinpi(x);
#else
  c = std::cos(x * 3.14159265358979323846);
  s = std::sin(x * 3.14159265358979323846);
#endif
}

}  // namespace kvfold::cuda
