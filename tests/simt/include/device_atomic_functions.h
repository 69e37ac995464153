// CUDA's atomic functions: relaxed, as there. Each returns the old value.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "tests/simt/device_code.h"

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): CUDA's names.

namespace simt {

template <size_t bytes>
using AtomicBits =
    std::conditional_t<bytes == 8, uint64_t, std::conditional_t<bytes == 4, uint32_t, uint16_t>>;

// Replaces the value at `address` by change(value) in one step. The loop is for ThreadSanitizer, which sees
// atomic operations and takes no order from them; nothing else runs in between.
template <class T, class F>
T atomic_update(T* address, const Site& site, F change) {
  using Bits = AtomicBits<sizeof(T)>;
  atomic_access(address, sizeof(T), true, site);
  auto* bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(change(std::bit_cast<T>(old))), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}

}  // namespace simt

#define SIMT_ATOMIC(name, T, expression)                                                   \
  inline T name(T* address, T value, simt::Site site = simt::Site::current()) {            \
    return simt::atomic_update(address, site, [value](T old) -> T { return expression; }); \
  }
#define SIMT_ATOMIC_INTEGERS(name, expression) \
  SIMT_ATOMIC(name, int, expression)           \
  SIMT_ATOMIC(name, unsigned, expression)      \
  SIMT_ATOMIC(name, unsigned long long, expression)

SIMT_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
SIMT_ATOMIC(atomicAdd, unsigned, old + value)
SIMT_ATOMIC(atomicAdd, unsigned long long, old + value)
SIMT_ATOMIC(atomicAdd, float, old + value)
SIMT_ATOMIC(atomicAdd, double, old + value)
SIMT_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
SIMT_ATOMIC(atomicSub, unsigned, old - value)
SIMT_ATOMIC_INTEGERS(atomicExch, (static_cast<void>(old), value))
SIMT_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
SIMT_ATOMIC_INTEGERS(atomicMin, value < old ? value : old)
SIMT_ATOMIC_INTEGERS(atomicMax, old < value ? value : old)
SIMT_ATOMIC_INTEGERS(atomicAnd, old& value)
SIMT_ATOMIC_INTEGERS(atomicOr, old | value)
SIMT_ATOMIC_INTEGERS(atomicXor, old ^ value)
SIMT_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)

#undef SIMT_ATOMIC_INTEGERS
#undef SIMT_ATOMIC

template <class T>
T atomicCAS(T* address, T expected, T value, simt::Site site = simt::Site::current()) {
  return simt::atomic_update(address, site, [&](T old) { return old == expected ? value : old; });
}

// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)
