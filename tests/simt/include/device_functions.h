// Barriers, shuffles, votes, and the arithmetic that CUDA names.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "tests/simt/device_code.h"

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): CUDA's names.

// ---- threads that wait for each other (CUDA C++ Programming Guide, "Synchronization Functions" and after)
// ----

inline void __syncthreads(simt::Site site = simt::Site::current()) { simt::block_barrier(false, site); }
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::current()) {
  return simt::block_barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::current()) {
  return simt::block_barrier(predicate != 0, site) != 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::current()) {
  return simt::block_barrier(predicate == 0, site) == 0 ? 1 : 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU, simt::Site site = simt::Site::current()) {
  simt::meet(simt::Meeting::kSync, mask, 0, 0, site);
}

// Threads run one at a time, so that a fence has nothing to do; what it would order counts as unordered.
inline void __threadfence() {}
inline void __threadfence_block() {}

// Segments of `width` lanes (a power of two) shuffle by themselves; a source outside the segment gives one's
// own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = simt::Site::current()) {
  const int lane = simt::lane_of_current_thread();
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return simt::from_bits<T>(simt::meet(simt::Meeting::kShuffle, mask, simt::to_bits(value), from, site));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Site site = simt::Site::current()) {
  const int lane = simt::lane_of_current_thread();
  const int from = lane - static_cast<int>(delta);
  const int first = lane & ~(width - 1);
  return simt::from_bits<T>(
      simt::meet(simt::Meeting::kShuffle, mask, simt::to_bits(value), from < first ? lane : from, site));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Site site = simt::Site::current()) {
  const int lane = simt::lane_of_current_thread();
  const int from = lane + static_cast<int>(delta);
  const int last = lane | (width - 1);
  return simt::from_bits<T>(
      simt::meet(simt::Meeting::kShuffle, mask, simt::to_bits(value), from > last ? lane : from, site));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  simt::Site site = simt::Site::current()) {
  const int lane = simt::lane_of_current_thread();
  const int from = lane ^ lanes;
  const int last = lane | (width - 1);
  return simt::from_bits<T>(
      simt::meet(simt::Meeting::kShuffle, mask, simt::to_bits(value), from > last ? lane : from, site));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return static_cast<unsigned>(simt::meet(simt::Meeting::kBallot, mask, predicate != 0 ? 1 : 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return __ballot_sync(mask, predicate == 0 ? 1 : 0, site) == 0 ? 1 : 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::Site::current()) {
  return static_cast<unsigned>(simt::meet(simt::Meeting::kMatch, mask, simt::to_bits(value), 0, site));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, simt::Site site = simt::Site::current()) {
  const unsigned same = __match_any_sync(mask, value, site);
  *all_equal = same == mask ? 1 : 0;
  return same == mask ? mask : 0;
}

[[noreturn]] inline void __trap(simt::Site site = simt::Site::current()) { simt::trap(site); }

// ---- memory ----

template <class T>
T __ldg(const T* address, simt::Site site = simt::Site::current()) {
  simt::check_alignment(address, sizeof(T), site);
  return *address;
}
template <class T>
T __ldca(const T* address, simt::Site site = simt::Site::current()) {
  return __ldg(address, site);
}
template <class T>
T __ldcg(const T* address, simt::Site site = simt::Site::current()) {
  return __ldg(address, site);
}
template <class T>
T __ldcs(const T* address, simt::Site site = simt::Site::current()) {
  return __ldg(address, site);
}
template <class T>
void __stcs(T* address, T value, simt::Site site = simt::Site::current()) {
  simt::check_alignment(address, sizeof(T), site);
  *address = value;
}
template <class T>
void __stcg(T* address, T value, simt::Site site = simt::Site::current()) {
  __stcs(address, value, site);
}

// ---- integers ----

inline int __dp4a(int a, int b, int c) {
  for (int byte = 0; byte < 4; ++byte) {
    const int product = static_cast<int8_t>(a >> 8 * byte) * static_cast<int8_t>(b >> 8 * byte);
    c = static_cast<int>(static_cast<unsigned>(c) + static_cast<unsigned>(product));
  }
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int byte = 0; byte < 4; ++byte) c += (a >> 8 * byte & 0xFFU) * (b >> 8 * byte & 0xFFU);
  return c;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1U) << (31 - bit);
  return reversed;
}
// Byte i of the result is byte (selector >> 4i) & 7 of y:x, or its sign bit eight times over when bit 3 is
// set.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned select = selector >> 4 * i & 0xFU;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (select & 7U)) & 0xFFU;
    if ((select & 8U) != 0) byte = (byte & 0x80U) != 0 ? 0xFFU : 0;
    out |= byte << 8 * i;
  }
  return out;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31U) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31U));
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

namespace simt {
// A function of bytes, on each of the four bytes of two words.
template <class Byte, class F>
unsigned by_bytes(unsigned a, unsigned b, F function) {
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const int result = function(static_cast<Byte>(a >> 8 * i), static_cast<Byte>(b >> 8 * i));
    out |= (static_cast<unsigned>(result) & 0xFFU) << 8 * i;
  }
  return out;
}
}  // namespace simt
inline unsigned __vadd4(unsigned a, unsigned b) {
  return simt::by_bytes<uint8_t>(a, b, [](int x, int y) { return x + y; });
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  return simt::by_bytes<uint8_t>(a, b, [](int x, int y) { return x - y; });
}
inline unsigned __vsubss4(unsigned a, unsigned b) {
  return simt::by_bytes<int8_t>(a, b, [](int x, int y) {
    const int difference = x - y;
    return difference < -128 ? -128 : difference > 127 ? 127 : difference;
  });
}
inline unsigned __vcmpeq4(unsigned a, unsigned b) {
  return simt::by_bytes<uint8_t>(a, b, [](int x, int y) { return x == y ? 0xFF : 0; });
}
inline unsigned __vcmpne4(unsigned a, unsigned b) { return ~__vcmpeq4(a, b); }

// ---- floats. Those that a GPU computes roughly are computed well here; no test may ask for their bits ----

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0F / x; }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

namespace simt {
// To the nearest integer, ties to even; what does not fit becomes the nearest that does, NaN becomes 0.
inline int float_to_int(double rounded) {
  if (std::isnan(rounded)) return 0;
  if (rounded <= -2147483648.0) return std::numeric_limits<int>::min();
  if (rounded >= 2147483647.0) return std::numeric_limits<int>::max();
  return static_cast<int>(rounded);
}
}  // namespace simt
inline int __float2int_rn(float x) { return simt::float_to_int(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return simt::float_to_int(std::trunc(x)); }
inline int __float2int_rd(float x) { return simt::float_to_int(std::floor(x)); }
inline int __float2int_ru(float x) { return simt::float_to_int(std::ceil(x)); }

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0F, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __powf(float a, float b) { return std::pow(a, b); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}
inline float __saturatef(float x) { return x > 0.0F ? (x < 1.0F ? x : 1.0F) : 0.0F; }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }

// CUDA has these in the global namespace, for mixed signedness too as far as C++ promotes it.
#define SIMT_MIN_MAX(T)                            \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
// The number, when one is NaN.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)
