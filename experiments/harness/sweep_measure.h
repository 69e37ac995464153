// One trial of a sweep: all points, with the own source and with an unrelated one, scored as one batch.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "experiments/harness/sweep.h"

namespace kvfold {

// The lines of trials.jsonl for one trial in one framing: baseline, text, and every point as transfer and as
// mismatched. `foreign` is the unrelated trial, whose source is used as mismatched. Errors: the pool; a point
// "start, follow, fed" that differs from text in one bit.
Result<std::vector<nlohmann::ordered_json>> measure_sweep(Session& session, const Sweep& sweep,
                                                          const FramedTrial& own, const FramedTrial& foreign);

// Means over trials by series and x, for a terminal.
std::string format_sweep(std::span<const nlohmann::json> lines);

}  // namespace kvfold
