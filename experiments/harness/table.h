// The final table of a run, for a terminal, made from the lines of trials.jsonl.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "engine/status.h"

namespace kvfold {

// The records of a JSON Lines file. Errors name the line that is none.
Result<std::vector<nlohmann::json>> read_lines(const std::string& path);

// The plan's cases, each condition of each framing with its output; what each family came to; a verdict line
// a case and framing. `width` terminal columns; escape sequences only where `colour` is set.
std::string format_table(std::span<const nlohmann::json> lines, int width, bool colour);

}  // namespace kvfold
