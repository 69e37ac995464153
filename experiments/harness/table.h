// The final table of a run, for a terminal, made from the lines of trials.jsonl.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/status.h"

namespace kvfold {

// The records of a JSON Lines file. Errors name the line that is none.
Result<std::vector<nlohmann::json>> read_lines(const std::string& path);

// The error "<path>: found records that are not of a run: <what is missing>".
Status not_of_a_run(const std::string& path, const std::exception& error);
// What `make` makes of the records of a file that a run wrote, and somebody else may have changed since.
// Errors name the file, and what is not in a record or of another type.
template <class Make>
auto make_of_lines(const std::string& path, const Make& make)
    -> Result<decltype(make(std::vector<nlohmann::json>()))> {
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<nlohmann::json> lines, read_lines(path));
  try {
    return make(lines);
  } catch (const nlohmann::json::exception& error) {
    return not_of_a_run(path, error);
  } catch (const std::out_of_range& error) {
    return not_of_a_run(path, error);
  }
}

// The plan's cases, each condition of each framing with its output; what each family came to; a verdict line
// a case and framing. `width` terminal columns; escape sequences only where `colour` is set.
std::string format_table(std::span<const nlohmann::json> lines, int width, bool colour);

}  // namespace kvfold
