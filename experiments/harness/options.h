// The command line that all drivers share, and what every driver does around its own work.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiments/harness/prompt_set.h"
#include "experiments/harness/run_folder.h"
#include "loaders/open.h"

namespace kvfold {

struct DriverOptions {
  std::string model = "smollm2-135m-instruct";
  std::string runs = "runs";
  std::string prompts;  // a prompt set
  std::string replay;   // the same-cache control's other process; not for people
  std::string framings = "raw,qa,chat,system";
  std::string backend = "auto";
  int device = -1;                // of the GPU; negative: none in particular
  std::string quantize = "none";  // on load
  int threads = 0;
  int count = 40;
  int limit = 0;  // trials of each family; 0: all
  uint64_t seed = 0;
  bool exact = false;
  bool family = false;     // the families too, not the plan's cases alone
  bool plan_only = false;  // the opposite, where the default is the families
  bool fresh = false;      // never go on with an unfinished run

  std::vector<std::string> command;  // argv
};

// Adds the options that every driver has; `with` those of trials.
void add_options(CLI::App& app, DriverOptions& options);

// Runs `body` as a program: parses, gives a failed Status one line on stderr. Exit status: 0, or 2.
int run_program(int argc, char** argv, CLI::App& app, DriverOptions& options,
                const std::function<Status()>& body);

Result<std::unique_ptr<Session>> open_session(const DriverOptions& options);
// An error where somebody wrote into the model's file since: nothing that was computed meanwhile is recorded.
Status weights_unchanged(const Session& session);
Result<std::vector<Framing>> parse_framings(const std::string& list);
// Errors: one of them needs a chat template, and the model has none that is known.
Status check_framings(std::span<const Framing> framings, const DriverOptions& options,
                      const Session& session);

// A prompt set that comes with the project: experiments/prompts/<name>.jsonl.
std::string prompt_set_path(const std::string& name);
// A file of the corpus that experiments/projector/make_corpus.py makes.
std::string corpus_path(const std::string& file);

// The trials that the options ask for, in the set's order: the plan's cases, those of the families, or both.
std::vector<const Trial*> choose_trials(const PromptSet& set, bool plan, bool families, int limit);

// What every manifest says: the model, the build, the machine, the command. Also what of it decides the
// results.
nlohmann::ordered_json describe_run(const Session& session, const DriverOptions& options);
// XXH3-64 of what decides a run's results: this, the driver's own `what` and the model, seed and build.
std::string run_identity(const nlohmann::ordered_json& description, const nlohmann::ordered_json& what);

// The manifest of a run that begins or goes on: what decides its lines, the description, and its state.
nlohmann::ordered_json make_manifest(const nlohmann::ordered_json& what,
                                     const nlohmann::ordered_json& description, const RunFolder& folder);

std::string utc_now();  // "2025-11-30T12:00:00Z"

}  // namespace kvfold
