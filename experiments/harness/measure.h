// One trial, measured: all its framings and conditions as one batch.
#pragma once

#include <span>
#include <vector>

#include "experiments/harness/generate.h"
#include "experiments/harness/outcome.h"

namespace kvfold {

struct MeasureOptions {
  int count = 40;     // most tokens of an answer
  uint64_t seed = 0;  // of the noise
};

// The same-cache control's answer, given by another process from `cache`, which is the loaded file.
struct Replayed {
  Continuation continuation;
  KvCache cache;
};

// `framings` are one trial in its framings, `replayed` has one answer for each. Errors: the pool is
// exhausted; same-cache differs from baseline, or transfer from text, in one bit.
Result<std::vector<TrialOutcome>> measure_trial(Session& session, std::span<const FramedTrial> framings,
                                                std::span<const Replayed> replayed,
                                                const MeasureOptions& options);

// The caches that the same-cache control saves: baseline's, of each trial and framing, with all of the target
// fed but its last token. Errors: the pool.
Result<std::vector<KvCache>> baseline_caches(Session& session, std::span<const FramedTrial> trials);

// For a trial in one framing: the reference uplift of its answer under each of `others` as the source (nats).
Result<std::vector<double>> permuted_uplifts(Session& session, const FramedTrial& trial,
                                             std::span<const std::vector<TokenId>> others);

std::string text_of(const Tokenizer& tokenizer, std::span<const TokenId> ids);

}  // namespace kvfold
