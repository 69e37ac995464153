// Stands in for CUDA's <cuda_runtime.h> where kernels and backend are compiled for the host: the same names,
// for what sm_75 has and this project uses. What is not here does not compile, which is meant: a name is
// added with its meaning.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <tuple>
#include <utility>

#include "tests/simt/device_code.h"
#include "tests/simt/include/cuda_runtime_api.h"
#include "tests/simt/include/device_atomic_functions.h"
#include "tests/simt/include/device_functions.h"
#include "tests/simt/include/vector_types.h"

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): CUDA's names.

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One copy for all blocks, which run one after the other. shared_variables.h finds them, in the kernel itself
// alone.
#define __shared__ static

#define threadIdx (::simt::thread_index)
#define blockIdx (::simt::block_index)
#define blockDim (::simt::block_size)
#define gridDim (::simt::grid_size)
inline constexpr int warpSize = 32;

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), and `extern __shared__ T name[]`.
#define KVFOLD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::simt::launch(#kernel, kernel, grid, block, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
#define KVFOLD_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::simt::dynamic_shared_memory())

namespace simt {

// Arguments are converted to the kernel's parameters and copied now; the kernel runs when the stream gets to
// it.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments),
                "as many arguments as the kernel has parameters");
  static_assert((0 + ... + sizeof(Parameters)) <= 4096, "kernel parameters are at most 4 KB");
  std::tuple<std::remove_const_t<Parameters>...> copies{std::forward<Arguments>(arguments)...};
  const auto body = [kernel, copies] {
    // Parameters are the thread's own, so that it copies them before it is watched.
    auto* const watched = kernel;
    auto parameters = copies;
    enter_kernel();
    std::apply(watched, parameters);
    leave_kernel();
  };
  enqueue_launch(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream, body);
}

}  // namespace simt

// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)
