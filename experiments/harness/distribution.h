// Next-token distributions, from rows of logits. Exponentials are f32 (relative error below 3e-7), sums f64
// over blocks of 512.
#pragma once

#include <span>
#include <vector>

namespace kvfold {

// log sum exp(logits). REQUIRES: at least one, all finite.
double log_sum_exp(std::span<const float> logits);

// A distribution p to compare others with.
class Distribution {
 public:
  explicit Distribution(std::span<const float> logits);
  // KL(p || q) in nats of the q that `logits` stand for; never below 0. REQUIRES: as many logits as p has.
  double kl_to(std::span<const float> logits) const;

 private:
  std::vector<float> p_;
  double negative_entropy_ = 0;  // sum p log p
  double mass_ = 0;              // sum p, as f32 holds it
};

}  // namespace kvfold
