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
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
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
  if (options_.temperature <= 0) return argmax(logits);
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  size_t kept = order_.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<size_t>(options_.top_k));
  // Equal logits are ordered by id, so that a seed gives the same text everywhere.
  const auto likelier = [&](TokenId a, TokenId b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept), order_.end(),
                    likelier);

  weights_.resize(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i)
    total += weights_[i] =
        std::exp((static_cast<double>(logits[order_[i]]) - logits[order_[0]]) / options_.temperature);
  if (options_.top_p < 1) {
    double reached = 0;
    size_t n = 0;
    while (n < kept && reached < options_.top_p * total) reached += weights_[n++];
    kept = std::max<size_t>(n, 1);
    total = std::accumulate(weights_.begin(), weights_.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  }
  double at = random_.uniform() * total;
  for (size_t i = 0; i + 1 < kept; ++i) {
    if (at < weights_[i]) return order_[i];
    at -= weights_[i];
  }
  return order_[kept - 1];
}

}  // namespace kvfold
