#include "experiments/harness/driver.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "engine/kv/cache_file.h"
#include "experiments/harness/measure.h"
#include "experiments/harness/metrics.h"
#include "experiments/harness/options.h"
#include "experiments/harness/progress.h"
#include "experiments/harness/replay.h"
#include "experiments/harness/run_folder.h"
#include "experiments/harness/table.h"
#include "experiments/say.h"

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

// Trials whose same-cache controls share one other process.
constexpr size_t kBlock = 8;
// Sources of other trials under which the plan's cases are scored where the families are run.
constexpr size_t kPermutations = 99;

class Run {
 public:
  Run(const Experiment& experiment, const DriverOptions& options, Session& session, const PromptSet& prompts,
      std::vector<Framing> framings)
      : experiment_(experiment),
        options_(options),
        session_(session),
        prompts_(prompts),
        framings_(std::move(framings)),
        trials_(choose_trials(prompts, true, options.family, options.limit)) {}

  Status run() {
    const Json description = describe_run(session_, options_);
    const std::string identity = run_identity(description, decides());
    KVFOLD_ASSIGN_OR_RETURN(RunFolder folder,
                            RunFolder::open(options_.runs, experiment_.phase, identity, options_.fresh));
    Json manifest = make_manifest(decides(), description, folder);
    KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
    const auto lines = static_cast<int64_t>(framings_.size() * std::size(kConditions));
    KVFOLD_ASSIGN_OR_RETURN(const std::set<std::string> done,
                            folder.open_records("trials.jsonl", ids(), [&](const nlohmann::json& x) {
                              return RunFolder::Group{x.value("trial", ""), lines};
                            }));
    KVFOLD_RETURN_IF_ERROR(run_trials(folder, done));
    const std::string path = folder.path() + "/trials.jsonl";
    KVFOLD_ASSIGN_OR_RETURN(const std::string table, make_table(path));
    const size_t cases = trials_.size() * framings_.size();
    manifest["checks"] = {{"same-cache", cases}, {"text", cases}};
    manifest["finished"] = utc_now();
    manifest["complete"] = true;
    KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
    fmt::print(
        "Phase {}: {}\n{}\n\n{}\n\nModel {}, {} tokens, greedy. Same-cache equals baseline, and transfer "
        "equals text, bit for bit.\n{}\n",
        experiment_.phase, experiment_.question, table, experiment_.reading, options_.model, options_.count,
        path);
    return {};
  }

 private:
  // What, besides the model and its options, decides the lines of the run.
  Json decides() const {
    std::vector<std::string> framings;
    for (const Framing framing : framings_) framings.emplace_back(framing_name(framing));
    std::vector<std::string> conditions;
    for (const Condition condition : kConditions) conditions.emplace_back(condition_name(condition));
    return {{"kvfold_trials", 1},
            {"phase", experiment_.phase},
            {"question", experiment_.question},
            {"family", options_.family ? "all" : "plan"},
            {"prompts", prompts_.path},
            {"prompts_xxh3", prompts_.hash},
            {"limit", options_.limit > 0 ? Json(options_.limit) : Json(nullptr)},
            {"trials", trials_.size()},
            {"framings", framings},
            {"conditions", conditions}};
  }

  std::set<std::string> ids() const {
    std::set<std::string> out;
    for (const Trial* trial : trials_) out.insert(trial->id);
    return out;
  }

  Status run_trials(RunFolder& folder, const std::set<std::string>& done) {
    std::vector<const Trial*> left;
    for (const Trial* trial : trials_)
      if (!done.contains(trial->id)) left.push_back(trial);
    if (folder.resumed())
      say(fmt::format("{}: going on, {} of {} trials are there", folder.path(), done.size(), trials_.size()));
    Progress progress(experiment_.phase, left.size());
    for (size_t begin = 0; begin < left.size(); begin += kBlock) {
      const std::span<const Trial* const> block(left.data() + begin, std::min(kBlock, left.size() - begin));
      KVFOLD_RETURN_IF_ERROR(run_block(folder, block, progress));
    }
    return {};
  }

  Status run_block(RunFolder& folder, std::span<const Trial* const> block, Progress& progress) {
    std::vector<FramedTrial> framed;
    for (const Trial* trial : block)
      for (const Framing framing : framings_) {
        KVFOLD_ASSIGN_OR_RETURN(
            FramedTrial f, frame(*trial, prompts_.by_id(trial->mismatched), framing, session_.tokenizer()));
        framed.push_back(std::move(f));
      }
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Replayed> replayed, replay(folder.scratch(), framed));
    const size_t n = framings_.size();
    for (size_t i = 0; i < block.size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(
          std::vector<TrialOutcome> outcomes,
          measure_trial(session_, std::span(framed).subspan(i * n, n), std::span(replayed).subspan(i * n, n),
                        {options_.count, options_.seed}));
      if (options_.family && block[i]->set == "plan") KVFOLD_RETURN_IF_ERROR(permute(outcomes));
      std::vector<Json> lines;
      for (const TrialOutcome& outcome : outcomes)
        for (const Outcome& o : outcome.outcomes) lines.push_back(to_json(outcome, o));
      KVFOLD_RETURN_IF_ERROR(weights_unchanged(session_));
      KVFOLD_RETURN_IF_ERROR(folder.append(lines));
      size_t found = 0;
      for (const TrialOutcome& outcome : outcomes)
        found += outcome.of(Condition::kTransfer).said.markers.empty() ? 0 : 1;
      progress.step(
          fmt::format("{}: transfer shows the source in {} of {} framings", block[i]->id, found, n));
    }
    return {};
  }

  // The same-cache control of every trial and framing of a block: saved here, continued by another process.
  Result<std::vector<Replayed>> replay(const std::string& scratch, std::span<const FramedTrial> framed) {
    const Model& model = session_.model();
    const CacheModelInfo info = cache_model_info(model.source());
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> caches, baseline_caches(session_, framed));
    std::vector<ReplayJob> jobs;
    for (size_t i = 0; i < framed.size(); ++i) {
      jobs.push_back({fmt::format("{}/{}.safetensors", scratch, i), framed[i].target.back()});
      KVFOLD_RETURN_IF_ERROR(save_cache(caches[i], info, jobs.back().cache_path));
    }
    KVFOLD_ASSIGN_OR_RETURN(std::vector<Continuation> answers,
                            replay_elsewhere({options_.model, options_.quantize, options_.exact,
                                              options_.threads, options_.count},
                                             jobs, scratch));
    if (answers.size() != jobs.size()) return Status::error("same-cache: an answer is missing");
    std::vector<Replayed> out;
    for (size_t i = 0; i < jobs.size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(KvCache loaded,
                              load_cache(jobs[i].cache_path, info, model.cache_shape(), session_.pool()));
      out.push_back({std::move(answers[i]), std::move(loaded)});
      std::error_code ignored;
      std::filesystem::remove(jobs[i].cache_path, ignored);
    }
    return out;
  }

  // Trials whose sources do not state the fact of one of the plan's cases: those of the test half, then, as a
  // rank among few is no small p after Holm over framings, those of the other.
  std::vector<const Trial*> trials_of_other_facts(const Trial& plan) const {
    std::vector<const Trial*> out;
    for (const char* half : {"test", "calibration"})
      for (const Trial& other : prompts_.trials)
        if (other.set == half && out.size() < kPermutations &&
            find_markers(other.source, {plan.contrast.marker}).empty())
          out.push_back(&other);
    return out;
  }

  // The plan's cases under other trials' sources: what their uplift is held against.
  Status permute(std::vector<TrialOutcome>& outcomes) {
    for (TrialOutcome& outcome : outcomes) {
      std::vector<std::vector<TokenId>> others;
      for (const Trial* other : trials_of_other_facts(*outcome.trial->trial)) {
        KVFOLD_ASSIGN_OR_RETURN(FramedTrial framed,
                                frame(*other, *other, outcome.trial->framing, session_.tokenizer()));
        others.push_back(std::move(framed.source.ids));
      }
      KVFOLD_ASSIGN_OR_RETURN(std::vector<double> uplifts,
                              permuted_uplifts(session_, *outcome.trial, others));
      for (Outcome& o : outcome.outcomes)
        if (o.condition == Condition::kTransfer) o.permuted_uplifts = uplifts;
    }
    return {};
  }

  static Result<std::string> make_table(const std::string& path) {
    const bool colour = isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
    winsize size{};
    const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    constexpr int kWidth = 140;
    return make_of_lines(path, [&](const std::vector<nlohmann::json>& lines) {
      return format_table(lines, known ? size.ws_col : kWidth, colour);
    });
  }

  const Experiment& experiment_;
  const DriverOptions& options_;
  Session& session_;
  const PromptSet& prompts_;
  std::vector<Framing> framings_;
  std::vector<const Trial*> trials_;
};

Status run(const Experiment& experiment, const DriverOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Framing> framings, parse_framings(options.framings));
  KVFOLD_ASSIGN_OR_RETURN(
      const PromptSet prompts,
      load_prompt_set(options.prompts.empty() ? prompt_set_path(experiment.phase) : options.prompts));
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, open_session(options));
  KVFOLD_RETURN_IF_ERROR(check_framings(framings, options, *session));
  return Run(experiment, options, *session, prompts, framings).run();
}

}  // namespace

int run_experiment(int argc, char** argv, const Experiment& experiment) {
  DriverOptions options;
  CLI::App app(fmt::format("Phase {}: {}", experiment.phase, experiment.question));
  add_options(app, options);
  app.add_flag("--family", options.family, "run the families too, not the plan's own cases alone");
  return run_program(argc, argv, app, options, [&]() -> Status {
    return options.replay.empty() ? run(experiment, options) : run_replay(options.replay);
  });
}

}  // namespace kvfold
