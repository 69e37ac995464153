// What came out of one trial in one framing under one condition, and its line of trials.jsonl.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "experiments/harness/attention_mass.h"
#include "experiments/harness/cache_signature.h"
#include "experiments/harness/conditions.h"
#include "experiments/harness/metrics.h"

namespace kvfold {

// A continuation as text, and what is measured of it.
struct Utterance {
  std::vector<TokenId> ids;
  std::string text;
  std::vector<std::string> markers, twin_markers, truth_markers;  // those found
  std::optional<double> perplexity_own;                           // under its own context
  std::optional<double> perplexity_baseline;                      // under the baseline context
  TextShape shape;
};

// A teacher-forced answer.
struct AnswerScore {
  double log_probability = 0;  // nats, of all its tokens
  int tokens = 0;
};

struct Outcome {
  Condition condition = Condition::kBaseline;
  std::string source_text;  // before the target; empty: none
  int source_tokens = 0;
  bool ended = false;
  bool stall = false;  // ended at once: `said` is empty, and `banned` is what follows with end tokens banned
                       // for the first
  Utterance said;
  std::optional<Utterance> banned;
  std::vector<double> kl;  // KL(baseline || condition) by position of baseline's output, nats
  double ld = 0;           // log p(marker) - log p(twin's marker), nats
  AnswerScore reference, twin;
  std::map<std::string, AnswerScore> probes;
  double marker_score = 0,
         decoy_score = 0;  // mean log-probability of the words' first tokens at the first position
  CacheSignature injected;
  AttentionShare attention;  // of the target's last token to the inserted rows; empty where there are none
  std::vector<double> permuted_uplifts;
};

// A trial in one framing with all its conditions, in the order of kConditions.
struct TrialOutcome {
  const FramedTrial* trial = nullptr;
  uint64_t seed = 0;
  CacheSignature natural;  // the target's own rows under baseline
  int reference_copy_run = 0;
  std::vector<Outcome> outcomes;
  const Outcome& of(Condition condition) const;
};

// One line of trials.jsonl; ARCHITECTURE.md lists its keys.
nlohmann::ordered_json to_json(const TrialOutcome& trial, const Outcome& outcome);

}  // namespace kvfold
