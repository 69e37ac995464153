// NVTX ranges, which a profiler would show: here they are kept for tests.
#pragma once

namespace simt {
void push_range(const char* name);
void pop_range();
}  // namespace simt

// NOLINTBEGIN(readability-identifier-naming): NVTX's names.
inline int nvtxRangePushA(const char* name) {
  simt::push_range(name);
  return 0;
}
inline int nvtxRangePop() {
  simt::pop_range();
  return 0;
}
// NOLINTEND(readability-identifier-naming)
