// Phase 2e: rows of one model's cache, projected, in another's. Its conditions, its measures, its program.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiments/harness/projection.h"

namespace kvfold {

// The conditions under which a receiver continues a text.
//   none             its own empty cache
//   text             its own cache of the context: the ceiling
//   projected        the source's cache of the context, projected
//   reference        the same by another projector, where one is given (--reference)
//   mismatched       another text's projected cache
//   mismatched-text  the receiver's own cache of that other text: for the G_pair of own caches
//   shuffled         by a projector that was fitted to pairs of rows of different texts (--shuffled)
//   mean             the projector's mean row at every place, its first row at the first
//   noise            random rows of the mean, deviation and norms of text's
//   true-k           text's K with the projected V
//   true-v           text's V with the projected K
//   written          what the source writes, asked to repeat the context, as the receiver's text
inline constexpr const char* kCrossingConditions[] = {
    "none",     "text", "projected", "reference", "mismatched", "mismatched-text",
    "shuffled", "mean", "noise",     "true-k",    "true-v",     "written"};

// The plan's cases are of these phases.
inline constexpr const char* kCasePhases[] = {"2a", "2b", "2c", "2d"};

// What crosses, from whom to whom.
struct Crossing {
  Session* source = nullptr;
  Session* target = nullptr;
  const Projector* projector = nullptr;
  const Projector* reference = nullptr;  // or null
  const Projector* shuffled = nullptr;   // or null
  ThreadPool* threads = nullptr;
  uint64_t seed = 0;
};

// The continuation's NLL of each text under each condition: a JSON line a text and condition. Texts are each
// other's mismatched ones, so they come in one call. Errors: as Session::feed; fewer than two texts.
Result<std::vector<nlohmann::ordered_json>> measure_texts(const Crossing& crossing,
                                                          std::span<const ProjectionText> texts);

// Under none, text, projected and mismatched (the twin's sentence): log-probabilities of the right name and
// city and of the twin's behind "Question: What is your name and where do you live?", and what is said.
Result<std::vector<nlohmann::ordered_json>> measure_facts(const Crossing& crossing,
                                                          std::span<const Fact> facts, int count);

// The plan's cases of phases 2a to 2d in a framing, under baseline, text, projected and mismatched: what is
// said, its markers, and LD.
Result<std::vector<nlohmann::ordered_json>> measure_cases(const Crossing& crossing,
                                                          const std::vector<std::string>& framings,
                                                          int count);

// G and its interval of each condition, from lines of measure_texts(); G_pair, by how much the own text beats
// another's in the gap, of projected caches and of the receiver's own, and of the former less the latter.
nlohmann::ordered_json summarise_texts(std::span<const nlohmann::ordered_json> lines, uint64_t seed);
// Of each condition and kind: how often right is likelier than the twin's, with an interval, and how often it
// is said.
nlohmann::ordered_json summarise_facts(std::span<const nlohmann::ordered_json> lines, uint64_t seed);

// The program. Exit status: 0, or 2 with one line on stderr.
int run_crossing(int argc, char** argv);

}  // namespace kvfold
