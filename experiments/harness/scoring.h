// Teacher forcing of many continuations as one batch: what a model thinks of given tokens.
#pragma once

#include <span>
#include <vector>

#include "engine/session.h"
#include "experiments/harness/distribution.h"

namespace kvfold {

// `cache`, fed `first`, meets the first of `ids`; fed that, the second, and so on.
struct ScoreJob {
  const KvCache* cache = nullptr;
  TokenId first = 0;
  std::span<const TokenId> ids;
  // Distributions to compare with, one for each of the first rows of logits, or empty.
  std::span<const Distribution> against;
  // Tokens whose log-probabilities at the first position are wanted.
  std::span<const TokenId> first_tokens;
  bool keep_distributions = false;  // of every position: `ids` and the one behind
};

struct Score {
  std::vector<double> log_probabilities;   // of each of `ids`
  std::vector<double> kl;                  // KL(against[i] || this) by position, nats
  std::vector<double> first_token_scores;  // of each of `first_tokens`
  std::vector<Distribution> distributions;

  double sum(size_t from = 0) const;  // of log_probabilities[from ...]
};

// Jobs of which one asks for the beginning of what another asks for, of the same cache, are computed once.
// Errors: as Session::feed. REQUIRES: against.size() <= ids.size() + 1.
Result<std::vector<Score>> score(Session& session, std::span<const ScoreJob> jobs);

}  // namespace kvfold
