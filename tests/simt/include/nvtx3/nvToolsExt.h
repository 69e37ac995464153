// NVTX ranges, which a profiler would show; nothing here.
#pragma once

// NOLINTBEGIN(readability-identifier-naming): NVTX's names.
inline int nvtxRangePushA(const char* /*name*/) { return 0; }
inline int nvtxRangePop() { return 0; }
// NOLINTEND(readability-identifier-naming)
