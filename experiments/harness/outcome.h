// What came out of one trial under one condition, and how it is written down.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "experiments/harness/conditions.h"
#include "experiments/harness/metrics.h"

namespace kvfold {

struct Outcome {
  Condition condition = Condition::kBaseline;
  Continuation continuation;
  std::string output;                         // text of the continuation
  std::vector<std::string> markers;           // those found in it
  bool stall = false;                         // the model ended at once
  RowNorms injected, natural;                 // rows put in, and the target's own under baseline
  std::optional<double> perplexity_own;       // of the output, under its own context
  std::optional<double> perplexity_baseline;  // of the output, under the baseline context
  double kl = 0;                              // KL(baseline || condition), mean along baseline's output, nats
};

// A trial in one framing, with all its conditions.
struct TrialOutcome {
  const FramedTrial* trial = nullptr;
  std::vector<Outcome> outcomes;
  const Outcome& of(Condition condition) const;
};

// One line of trials.jsonl.
nlohmann::ordered_json to_json(const std::string& phase, const FramedTrial& trial, const Outcome& outcome);

// The final table of a run, for a terminal `width` columns wide; escape sequences only where `colour` is set.
std::string format_table(const Experiment& experiment, std::span<const TrialOutcome> trials, int width,
                         bool colour);

}  // namespace kvfold
