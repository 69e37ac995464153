// Which sanitizer this file is built with, and its calls as functions that do nothing without it.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_THREAD__) && !defined(SIMT_SHADOW)
#define SIMT_TSAN 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#endif
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) && !defined(SIMT_SHADOW)
#define SIMT_TSAN 1
#endif
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif

// The executor is not part of the program under test: none of its accesses is checked, and none is taken for
// the kernel's.
#define SIMT_UNSANITIZED \
  __attribute__((noinline, no_sanitize("thread"), no_sanitize("address"), no_sanitize("undefined")))

#if defined(SIMT_TSAN)
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming): the library's names.
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)
#endif
#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// Everything before release(x) by one CUDA thread happens before everything after acquire(x) by another.
inline void sanitizer_release([[maybe_unused]] void* address) {
#if defined(SIMT_TSAN)
  __tsan_release(address);
#endif
}
inline void sanitizer_acquire([[maybe_unused]] void* address) {
#if defined(SIMT_TSAN)
  __tsan_acquire(address);
#endif
}

}  // namespace simt
