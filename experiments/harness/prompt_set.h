// A prompt set: JSON Lines, one trial a line (ARCHITECTURE.md lists the keys).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "experiments/harness/trial.h"

namespace kvfold {

struct PromptSet {
  std::string path;
  std::string hash;  // XXH3-64 of the file, 16 hex digits
  std::vector<Trial> trials;

  // REQUIRES: the set has it (load() sees to that for every `mismatched`).
  const Trial& by_id(const std::string& id) const;

 private:
  friend Result<PromptSet> parse_prompt_set(const std::string& text, const std::string& path);
  std::map<std::string, size_t> index_;
};

// Errors, each naming file and line: not JSON, a key missing, unknown or of the wrong type, an id used twice,
// a `mismatched` that is the trial itself or no trial of the set.
Result<PromptSet> load_prompt_set(const std::string& path);
// The same of a text that was read from `path`.
Result<PromptSet> parse_prompt_set(const std::string& text, const std::string& path);

}  // namespace kvfold
