#include "kernels/cpu/cpu.h"

#include <array>
#include <string_view>

#if defined(KVFOLD_X86_64)
#include <cpuid.h>
#endif

namespace kvfold {

extern const CpuKernels kPlainKernels;
#if defined(KVFOLD_X86_64)
extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx2Kernels;
namespace avx2_vnni {
void matmul_q8(const MatrixView& weight, int64_t begin, int64_t end, const QuantizedView& x, int rows,
               float* y, int64_t y_stride);
}  // namespace avx2_vnni
#endif

namespace {

#if defined(KVFOLD_X86_64)
// CPUID's leaf 7, part 1: EAX bit 4 (Intel's manual, volume 2, "CPUID"), for which Clang 14 has no name.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return kAvx2Kernels.supported() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

// AVX2's table with the products that AVX-VNNI makes faster.
CpuKernels avx2_with_vnni() {
  CpuKernels out = kAvx2Kernels;
  out.name = "avx2_vnni";
  out.supported = has_avx_vnni;
  out.matmul_q8 = avx2_vnni::matmul_q8;
  return out;
}
#endif

}  // namespace

std::span<const CpuKernels* const> cpu_kernel_tables() {
#if defined(KVFOLD_X86_64)
  static const CpuKernels kAvx2VnniKernels = avx2_with_vnni();
  static const std::array kTables = {&kAvx512Kernels, &kAvx2VnniKernels, &kAvx2Kernels, &kPlainKernels};
#else
  static const std::array kTables = {&kPlainKernels};
#endif
  return kTables;
}

const CpuKernels* select_cpu_kernels(const char* name) {
  for (const CpuKernels* table : cpu_kernel_tables())
    if (table->supported() && (name == nullptr || std::string_view(table->name) == name)) return table;
  return nullptr;
}

}  // namespace kvfold
