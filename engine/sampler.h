// Choosing the next token from logits.
#pragma once

#include <span>
#include <vector>

#include "engine/likeliest.h"
#include "engine/random.h"
#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

struct SamplerOptions {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // keep the k likeliest; 0: all
  float top_p = 1;  // then keep the likeliest whose probabilities reach p together (Holtzman et al. 2020)
  uint64_t seed = 0;
};

// The likeliest token: the largest logit, the first of equals.
TokenId argmax(std::span<const float> logits);

// log softmax(logits)[id], in double.
double log_probability(std::span<const float> logits, TokenId id);

// KL(p || q) in nats of the distributions that two rows of logits stand for.
double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits);

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {}
  // Of how many of the likeliest tokens one is taken; 0: of all.
  int candidates() const { return options_.temperature <= 0 ? 1 : options_.top_k; }
  TokenId sample(std::span<const float> logits);
  // The same from those `candidates()` alone, likeliest first (all of a smaller vocabulary).
  TokenId sample(std::span<const TokenLogit> likeliest);

 private:
  SamplerOptions options_;
  Random random_;
  std::vector<TokenLogit> candidates_;
  std::vector<double> weights_;
};

}  // namespace kvfold
