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
  kText,       // the two texts fed in turn: the ceiling
  kTransfer,   // the source's rows, inserted; then the target
};
inline constexpr Condition kConditions[] = {Condition::kBaseline, Condition::kSameCache, Condition::kNoise,
                                            Condition::kText, Condition::kTransfer};
const char* condition_name(Condition condition);

// The cache of a condition, with all of the target fed but its last token.
struct ConditionCache {
  Condition condition;
  KvCache cache;
  int inserted_begin = 0, inserted_end = 0;  // slots of rows that do not belong to the target
};

// Builds every condition but same-cache (which is baseline's cache after a round trip through a file and a
// process). The transfer's source is computed alone and its rows inserted at the start, so that positions
// follow. Errors: the pool.
Result<std::vector<ConditionCache>> build_conditions(Session& session, const FramedTrial& trial,
                                                     uint64_t seed);

}  // namespace kvfold
