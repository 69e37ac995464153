#include "engine/rope.h"

#include <algorithm>
#include <cmath>

namespace kvfold {
namespace {

constexpr int64_t kFirstDistances = 512;
constexpr int64_t kMostDistances = 1 << 17;

}  // namespace

RopeTables::RopeTables(const ModelConfig& config)
    : interleaved_(config.rope_pairing == RopePairing::kInterleaved) {
  const int pairs = config.rotary_dim / 2;
  for (int i = 0; i < pairs; ++i) {
    const double factor = config.rope_factors.empty() ? 1.0 : config.rope_factors[i];
    frequencies_.push_back(std::pow(static_cast<double>(config.rope_base), -2.0 * i / config.rotary_dim) /
                           factor);
  }
  for (int i = 0; i < pairs; ++i)
    for (int j = 0; j < kPageRows; ++j) {
      key_cos_.push_back(static_cast<float>(std::cos(j * frequencies_[i])));
      key_sin_.push_back(static_cast<float>(std::sin(j * frequencies_[i])));
    }
  reserve(kFirstDistances - 1);
}

void RopeTables::reserve(int64_t distance) {
  const auto pairs = static_cast<int64_t>(frequencies_.size());
  if (pairs == 0) return;
  const int64_t have = static_cast<int64_t>(query_cos_.size()) / pairs;
  const int64_t wanted = std::min(distance + 1, kMostDistances);
  if (wanted <= have) return;
  for (int64_t d = have; d < std::min(std::max(wanted, 2 * have), kMostDistances); ++d)
    for (const double frequency : frequencies_) {
      query_cos_.push_back(static_cast<float>(std::cos(static_cast<double>(d) * frequency)));
      query_sin_.push_back(static_cast<float>(std::sin(static_cast<double>(d) * frequency)));
    }
}

RopeView RopeTables::view() const {
  const size_t pairs = frequencies_.size();
  const size_t distances = pairs == 0 ? 0 : query_cos_.size() / pairs;
  return {key_cos_.data(),         key_sin_.data(),     query_cos_.data(),
          query_sin_.data(),       frequencies_.data(), static_cast<int>(distances),
          static_cast<int>(pairs), interleaved_};
}

}  // namespace kvfold
