#include "experiments/harness/distribution.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace kvfold {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kBlock = 512;

// e^x for x <= 0, of operations that a compiler turns into vector code for any CPU: no fused multiply-add and
// no library call (kernels' exp_f32 has both). Range reduction x = n ln2 + r and Cephes' polynomial; below
// -87 it is e^-87, which no sum here can notice.
[[gnu::always_inline]] inline float exp_negative(float x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > -87.0F ? x : -87.0F;
  const float n = (x * 1.44269504088896341F + kRound) - kRound;
  const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r;
  const auto exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  return (p + 1.0F) * std::bit_cast<float>(exponent);
}

[[gnu::always_inline]] inline float largest_of(std::span<const float> x) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, x[0]);
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes)
    for (size_t l = 0; l < kLanes; ++l) lanes[l] = lanes[l] > x[i + l] ? lanes[l] : x[i + l];
  for (; i < x.size(); ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

[[gnu::always_inline]] inline double log_sum_exp_lanes(std::span<const float> logits) {
  const float largest = largest_of(logits);
  double sum = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, logits.size());
    float lanes[kLanes] = {};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes)
      for (size_t l = 0; l < kLanes; ++l) lanes[l] += exp_negative(logits[i + l] - largest);
    for (; i < end; ++i) lanes[0] += exp_negative(logits[i] - largest);
    for (const float lane : lanes) sum += lane;
  }
  return largest + std::log(sum);
}

// The same arithmetic in the same order, for wider vectors: the same bits.
double log_sum_exp_plain(std::span<const float> logits) { return log_sum_exp_lanes(logits); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] double log_sum_exp_avx2(std::span<const float> logits) {
  return log_sum_exp_lanes(logits);
}
[[gnu::target("avx512f")]] double log_sum_exp_avx512(std::span<const float> logits) {
  return log_sum_exp_lanes(logits);
}
#endif

using LogSumExp = double (*)(std::span<const float>);
LogSumExp widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") != 0) return log_sum_exp_avx512;
  if (__builtin_cpu_supports("avx2") != 0) return log_sum_exp_avx2;
#endif
  return log_sum_exp_plain;
}

}  // namespace

double log_sum_exp(std::span<const float> logits) {
  static const LogSumExp kWidest = widest();
  return kWidest(logits);
}

Distribution::Distribution(std::span<const float> logits) : p_(logits.size()) {
  const double total = log_sum_exp(logits);
  for (size_t i = 0; i < p_.size(); ++i) {
    const double log_p = logits[i] - total;
    p_[i] = static_cast<float>(std::exp(log_p));
    negative_entropy_ += p_[i] * log_p;
    mass_ += p_[i];
  }
}

// sum p log p - sum p (q's logit - log sum exp(q)), in f64, as the two nearly cancel.
double Distribution::kl_to(std::span<const float> logits) const {
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= p_.size(); i += kLanes)
    for (size_t l = 0; l < kLanes; ++l)
      lanes[l] += static_cast<double>(p_[i + l]) * static_cast<double>(logits[i + l]);
  for (; i < p_.size(); ++i) lanes[0] += static_cast<double>(p_[i]) * static_cast<double>(logits[i]);
  double expected = 0;
  for (const double lane : lanes) expected += lane;
  return std::max(0.0, negative_entropy_ - expected + mass_ * log_sum_exp(logits));
}

}  // namespace kvfold
