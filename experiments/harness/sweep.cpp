#include "experiments/harness/sweep.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "engine/kv/ops.h"
#include "experiments/harness/metrics.h"
#include "experiments/harness/options.h"
#include "experiments/harness/outcome.h"
#include "experiments/harness/progress.h"
#include "experiments/harness/run_folder.h"
#include "experiments/harness/scoring.h"
#include "experiments/harness/sweep_measure.h"
#include "experiments/harness/table.h"
#include "experiments/say.h"

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

class SweepRun {
 public:
  SweepRun(const Sweep& sweep, const DriverOptions& options, Session& session, std::vector<Framing> framings)
      : sweep_(sweep), options_(options), session_(session), framings_(std::move(framings)) {}

  Status run() {
    KVFOLD_RETURN_IF_ERROR(choose());
    const Json description = describe_run(session_, options_);
    KVFOLD_ASSIGN_OR_RETURN(
        RunFolder folder,
        RunFolder::open(options_.runs, sweep_.name, run_identity(description, decides()), options_.fresh));
    Json manifest = make_manifest(decides(), description, folder);
    KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
    KVFOLD_ASSIGN_OR_RETURN(const std::set<std::string> done,
                            folder.open_records("trials.jsonl", ids(), [](const nlohmann::json& x) {
                              return RunFolder::Group{x.value("trial", ""), x.value("lines", int64_t{0})};
                            }));
    if (folder.resumed())
      say(fmt::format("{}: going on, {} of {} trials are there", folder.path(), done.size(), trials_.size()));
    Progress progress(sweep_.name, trials_.size() - done.size());
    for (const auto& [set, trial] : trials_) {
      if (done.contains(trial->id)) continue;
      KVFOLD_RETURN_IF_ERROR(run_trial(folder, *set, *trial));
      progress.step(trial->id);
    }
    const std::string path = folder.path() + "/trials.jsonl";
    KVFOLD_ASSIGN_OR_RETURN(const std::string table, make_of_lines(path, format_sweep));
    manifest["checks"] = {
        {"same-cache", nullptr},
        {"text", sweep_.name == "position" ? Json(trials_.size() * framings_.size()) : nullptr}};
    manifest["finished"] = utc_now();
    manifest["complete"] = true;
    KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
    fmt::print("{}: {}\n{}\n{}\n\nModel {}. Means over {} trials; intervals are the report's.\n{}\n",
               sweep_.name, sweep_.question, table, sweep_.reading, options_.model, trials_.size(), path);
    return {};
  }

 private:
  Status choose() {
    for (const Sweep::From& from : sweep_.from) {
      KVFOLD_ASSIGN_OR_RETURN(
          PromptSet set,
          load_prompt_set(options_.prompts.empty() ? prompt_set_path(from.prompts) : options_.prompts));
      sets_.push_back(std::make_unique<PromptSet>(std::move(set)));
      // The limit counts trials that the sweep uses. Nothing here is calibrated: no point has a threshold.
      std::map<std::string, int> taken;
      for (const Trial& trial : sets_.back()->trials) {
        if (trial.set == "calibration" || !from.use(trial)) continue;
        if (taken[trial.family + "/" + trial.set]++ < options_.limit)
          trials_.emplace_back(sets_.back().get(), &trial);
      }
      if (!options_.prompts.empty()) break;  // a set of the user's own is the whole of it
    }
    if (trials_.empty()) return Status::error("no trial of the prompt set is of use to this sweep");
    return {};
  }

  Json decides() const {
    std::vector<std::string> framings;
    for (const Framing framing : framings_) framings.emplace_back(framing_name(framing));
    std::vector<std::string> hashes;
    std::vector<std::string> paths;
    for (const auto& set : sets_) {
      hashes.push_back(set->hash);
      paths.push_back(set->path);
    }
    return {{"kvfold_trials", 1},
            {"phase", sweep_.name},
            {"question", sweep_.question},
            {"family", "all"},
            {"prompts", paths},
            {"prompts_xxh3", hashes},
            {"limit", options_.limit},
            {"trials", trials_.size()},
            {"framings", framings},
            {"conditions", {"baseline", "text", "transfer", "mismatched"}}};
  }

  std::set<std::string> ids() const {
    std::set<std::string> out;
    for (const auto& entry : trials_) out.insert(entry.second->id);
    return out;
  }

  Status run_trial(RunFolder& folder, const PromptSet& set, const Trial& trial) {
    const Trial& other = set.by_id(trial.mismatched);
    std::vector<Json> lines;
    for (const Framing framing : framings_) {
      KVFOLD_ASSIGN_OR_RETURN(const FramedTrial own, frame(trial, other, framing, session_.tokenizer()));
      KVFOLD_ASSIGN_OR_RETURN(const FramedTrial foreign,
                              frame(other, set.by_id(other.mismatched), framing, session_.tokenizer()));
      KVFOLD_ASSIGN_OR_RETURN(std::vector<Json> made, measure_sweep(session_, sweep_, own, foreign));
      lines.insert(lines.end(), std::make_move_iterator(made.begin()), std::make_move_iterator(made.end()));
    }
    for (Json& line : lines) line["lines"] = lines.size();
    KVFOLD_RETURN_IF_ERROR(weights_unchanged(session_));
    return folder.append(lines);
  }

  const Sweep& sweep_;
  const DriverOptions& options_;
  Session& session_;
  std::vector<Framing> framings_;
  std::vector<std::unique_ptr<PromptSet>> sets_;
  std::vector<std::pair<const PromptSet*, const Trial*>> trials_;
};

}  // namespace

int run_sweep(int argc, char** argv, const Sweep& sweep) {
  constexpr int kTrialsOfAFamily = 12;
  DriverOptions options;
  options.framings = "qa";
  options.limit = kTrialsOfAFamily;
  CLI::App app(fmt::format("{}: {}", sweep.name, sweep.question));
  add_options(app, options);
  return run_program(argc, argv, app, options, [&]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Framing> framings, parse_framings(options.framings));
    KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, open_session(options));
    KVFOLD_RETURN_IF_ERROR(check_framings(framings, options, *session));
    return SweepRun(sweep, options, *session, framings).run();
  });
}

}  // namespace kvfold
