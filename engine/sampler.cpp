#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvfold {
namespace {

// log of the sum of exp(logits), in double.
double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - largest);
  return largest + std::log(sum);
}

}  // namespace

TokenId argmax(std::span<const float> logits) {
  TokenLogit best;
  find_likeliest(logits, {&best, 1});
  return best.id;
}

double log_probability(std::span<const float> logits, TokenId id) { return logits[id] - log_sum_exp(logits); }

double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  const double p_norm = log_sum_exp(p_logits);
  const double q_norm = log_sum_exp(q_logits);
  double sum = 0;
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = p_logits[i] - p_norm;
    sum += std::exp(log_p) * (log_p - (q_logits[i] - q_norm));
  }
  return std::max(0.0, sum);
}

TokenId Sampler::sample(std::span<const float> logits) {
  const auto most = static_cast<size_t>(candidates());
  candidates_.resize(most == 0 ? logits.size() : std::min(most, logits.size()));
  find_likeliest(logits, candidates_);
  return sample(candidates_);
}

// Equal logits are ordered by id, so that a seed gives the same text everywhere.
TokenId Sampler::sample(std::span<const TokenLogit> likeliest) {
  if (options_.temperature <= 0) return likeliest[0].id;
  size_t kept = likeliest.size();
  weights_.resize(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i)
    total += weights_[i] =
        std::exp((static_cast<double>(likeliest[i].logit) - likeliest[0].logit) / options_.temperature);
  if (options_.top_p < 1) {
    double reached = 0;
    size_t n = 0;
    while (n < kept && reached < options_.top_p * total) reached += weights_[n++];
    kept = std::max<size_t>(n, 1);
    total = std::accumulate(weights_.begin(), weights_.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  }
  double at = random_.uniform() * total;
  for (size_t i = 0; i + 1 < kept; ++i) {
    if (at < weights_[i]) return likeliest[i].id;
    at -= weights_[i];
  }
  return likeliest[kept - 1].id;
}

}  // namespace kvfold
