// The conditions of a trial: what stands in the cache before the target's last token is fed.
#pragma once

#include <string>
#include <vector>

#include "experiments/harness/trial.h"

namespace kvfold {

enum class Condition {
  kBaseline,   // the target alone
  kSameCache,  // the target's own rows, saved, and loaded in another process; never fed again
  kNoise,      // rows of the source's shape, mean, deviation and norms, in random directions; then the target
  kNoiseUnit,  // N(0, 1)
  kNoiseChannel,  // each lane's mean and covariance over channels
  kZero,
  kShuffled,    // the source's rows in another order
  kTransfer,    // the source's rows, inserted; then the target
  kText,        // the two texts fed in turn: the ceiling
  kMismatched,  // another trial's source
  kTwin,        // the source with another fact
  kFiller,      // neutral text of the source's length
};
inline constexpr Condition kConditions[] = {
    Condition::kBaseline,     Condition::kSameCache,  Condition::kNoise,    Condition::kNoiseUnit,
    Condition::kNoiseChannel, Condition::kZero,       Condition::kShuffled, Condition::kTransfer,
    Condition::kText,         Condition::kMismatched, Condition::kTwin,     Condition::kFiller};
const char* condition_name(Condition condition);

// The cache of a condition, with all of the target fed but its last token.
struct ConditionCache {
  Condition condition;
  KvCache cache;
  int inserted_begin = 0, inserted_end = 0;  // slots of rows that do not belong to the target
  const SourceText* source = nullptr;        // whose rows, or whose shape; null: none
};

// The rows of a text alone, behind the prefix that every condition has: positions follow the prefix.
// Errors: the pool.
Result<KvSlice> source_rows(Session& session, std::span<const TokenId> prefix, std::span<const TokenId> text);

// Builds every condition of every trial but same-cache (which is baseline's cache after a round trip through
// a file and a process), in the order of kConditions. Sources are computed alone and their rows inserted at
// the start, so that positions follow. All is fed in as few batches as its dependencies allow. Noise is
// seeded by `seed`, the trial's id and the framing. Errors: the pool.
Result<std::vector<std::vector<ConditionCache>>> build_conditions(Session& session,
                                                                  std::span<const FramedTrial> trials,
                                                                  uint64_t seed);

// Seed of the noise of one trial in one framing, whatever else is run.
uint64_t trial_seed(uint64_t seed, const FramedTrial& trial);

}  // namespace kvfold
