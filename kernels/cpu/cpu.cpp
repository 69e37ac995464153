#include "kernels/cpu/cpu.h"

#include <array>
#include <string_view>

namespace kvfold {

extern const CpuKernels kPlainKernels;
#if defined(KVFOLD_X86_64)
extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx2Kernels;
#endif

namespace {

constexpr std::array kTables = {
#if defined(KVFOLD_X86_64)
    &kAvx512Kernels,
    &kAvx2Kernels,
#endif
    &kPlainKernels,
};

}  // namespace

std::span<const CpuKernels* const> cpu_kernel_tables() { return kTables; }

const CpuKernels* select_cpu_kernels(const char* name) {
  for (const CpuKernels* table : kTables)
    if (table->supported() && (name == nullptr || std::string_view(table->name) == name)) return table;
  return nullptr;
}

}  // namespace kvfold
