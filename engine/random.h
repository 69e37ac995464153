// A small counter-free generator whose stream is the same on every machine: SplitMix64 (Steele, Lea, Flood
// 2014).
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace kvfold {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }
  // In [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  // In [0, n). REQUIRES: n > 0. The bias, n / 2^64, is far below anything that could be measured.
  uint64_t below(uint64_t n) { return next() % n; }
  // N(0, 1) by Box and Muller's transform.
  double gaussian() {
    if (have_spare_) {
      have_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    const double angle = 2.0 * std::numbers::pi * uniform();
    spare_ = radius * std::sin(angle);
    have_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  uint64_t state_;
  double spare_ = 0;
  bool have_spare_ = false;
};

// A seed for a stream of its own, from a seed and what the stream is for.
inline uint64_t derive_seed(uint64_t seed, uint64_t stream) {
  return Random(seed ^ (stream * 0xD1342543DE82EF95U)).next();
}

}  // namespace kvfold
