#include "experiments/harness/driver.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>

#include "engine/kv/cache_file.h"
#include "experiments/harness/outcome.h"
#include "experiments/harness/replay.h"
#include "experiments/harness/run_folder.h"
#include "loaders/open.h"

namespace kvfold {
namespace {

constexpr int kBadInput = 2;

struct Options {
  std::string model = "smollm2-135m-instruct";
  std::string runs = "runs";
  std::string replay;
  int threads = 0;
  int count = 40;
  uint64_t seed = 0;
  bool exact = false;
};

// A trial in one framing with its caches, ready to be continued.
struct Prepared {
  FramedTrial trial;
  std::vector<ConditionCache> conditions;
  std::string saved;  // baseline's cache, for the same-cache control
};

// One line a trial on stderr; on a terminal a bar that is drawn over itself.
class Progress {
 public:
  Progress(std::string phase, size_t total)
      : phase_(std::move(phase)), total_(total), terminal_(isatty(STDERR_FILENO) != 0) {}
  void step(const FramedTrial& trial, const std::string& what) {
    ++done_;
    constexpr size_t kWidth = 24;
    const size_t filled = kWidth * done_ / total_;
    const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
    const std::string line = fmt::format("{} [{}] {}/{} {} {}: {}", phase_, bar, done_, total_,
                                         trial.trial->name, framing_name(trial.framing), what);
    if (terminal_) {
      fmt::print(stderr, "\r\x1b[K{}{}", line, done_ == total_ ? "\n" : "");
    } else {
      fmt::print(stderr, "{}\n", line);
    }
    std::fflush(stderr);
  }

 private:
  std::string phase_;
  size_t total_;
  size_t done_ = 0;
  bool terminal_;
};

class Run {
 public:
  Run(const Experiment& experiment, const Options& options, Session& session, RunFolder& folder)
      : experiment_(experiment), options_(options), session_(session), folder_(folder) {}

  Status run() {
    KVFOLD_RETURN_IF_ERROR(folder_.write_manifest(manifest()));
    KVFOLD_RETURN_IF_ERROR(prepare());
    KVFOLD_RETURN_IF_ERROR(replay());
    Progress progress(experiment_.phase, prepared_.size());
    for (size_t i = 0; i < prepared_.size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(TrialOutcome outcome, measure(prepared_[i], replayed_[i]));
      for (const Outcome& o : outcome.outcomes)
        KVFOLD_RETURN_IF_ERROR(folder_.append(to_json(experiment_.phase, prepared_[i].trial, o)));
      const Outcome& transfer = outcome.of(Condition::kTransfer);
      progress.step(prepared_[i].trial, fmt::format("{} of {} markers", transfer.markers.size(),
                                                    prepared_[i].trial.trial->markers.size()));
      outcomes_.push_back(std::move(outcome));
    }
    return {};
  }

  const std::vector<TrialOutcome>& outcomes() const { return outcomes_; }

 private:
  nlohmann::ordered_json manifest() const {
    const ModelSource& source = session_.model().source();
    return {{"phase", experiment_.phase},
            {"question", experiment_.question},
            {"model", options_.model},
            {"model_path", source.path},
            {"model_name", source.config.name},
            {"model_fingerprint", source.fingerprint},
            {"backend", session_.model().backend().name()},
            {"precision", options_.exact ? "exact" : "int8"},
            {"tokens", options_.count},
            {"seed", options_.seed},
            {"build", KVFOLD_BUILD},
            {"decoding", "greedy"},
            {"insertion", "start, positions follow"},
            {"conditions", conditions()}};
  }

  static std::vector<std::string> conditions() {
    std::vector<std::string> names;
    for (const Condition condition : kConditions) names.emplace_back(condition_name(condition));
    return names;
  }

  Status prepare() {
    const Model& model = session_.model();
    for (const Trial& trial : experiment_.trials)
      for (const Framing framing : kFramings) {
        KVFOLD_ASSIGN_OR_RETURN(FramedTrial framed, frame(trial, framing, session_.tokenizer()));
        KVFOLD_ASSIGN_OR_RETURN(std::vector<ConditionCache> conditions,
                                build_conditions(session_, framed, options_.seed + prepared_.size()));
        const std::string saved = fmt::format("{}/{}.safetensors", folder_.scratch(), prepared_.size());
        KVFOLD_RETURN_IF_ERROR(save_cache(conditions[0].cache, cache_model_info(model.source()), saved));
        prepared_.push_back({std::move(framed), std::move(conditions), saved});
      }
    return {};
  }

  Status replay() {
    std::vector<ReplayJob> jobs;
    for (const Prepared& p : prepared_) jobs.push_back({p.saved, p.trial.target.back()});
    KVFOLD_ASSIGN_OR_RETURN(
        replayed_, replay_elsewhere({options_.model, options_.exact, options_.threads, options_.count}, jobs,
                                    folder_.scratch()));
    if (replayed_.size() != jobs.size()) return Status::error("same-cache: an answer is missing");
    return {};
  }

  // Bits that must be equal, or no result of this run means anything.
  Status check_equal(const FramedTrial& trial, const Continuation& a, const Continuation& b,
                     const char* what) const {
    if (a.ids == b.ids && a.hashes == b.hashes && a.ended == b.ended) return {};
    return Status::error(fmt::format("trial '{}' ({}): {} differ; the run is void", trial.trial->name,
                                     framing_name(trial.framing), what));
  }

  Result<TrialOutcome> measure(const Prepared& p, const Continuation& replayed) {
    std::vector<Start> starts;
    for (const ConditionCache& c : p.conditions) starts.push_back({c.cache.fork(), p.trial.target.back()});
    KVFOLD_ASSIGN_OR_RETURN(std::vector<Continuation> continued,
                            continue_greedily(session_, starts, options_.count));
    TrialOutcome out{&p.trial, {}};
    for (size_t i = 0; i < p.conditions.size(); ++i) {
      out.outcomes.push_back({});
      out.outcomes.back().condition = p.conditions[i].condition;
      out.outcomes.back().continuation = std::move(continued[i]);
    }
    Outcome same;
    same.condition = Condition::kSameCache;
    same.continuation = replayed;
    out.outcomes.insert(out.outcomes.begin() + 1, std::move(same));
    KVFOLD_RETURN_IF_ERROR(check_equal(p.trial, out.of(Condition::kBaseline).continuation,
                                       out.of(Condition::kSameCache).continuation,
                                       "same-cache and baseline"));
    KVFOLD_RETURN_IF_ERROR(check_equal(p.trial, out.of(Condition::kText).continuation,
                                       out.of(Condition::kTransfer).continuation, "transfer and text"));
    KVFOLD_RETURN_IF_ERROR(measure_outcomes(p, out));
    return out;
  }

  Status measure_outcomes(const Prepared& p, TrialOutcome& out) {
    const Model& model = session_.model();
    const KvCache& baseline = p.conditions[0].cache;
    const TokenId last = p.trial.target.back();
    KVFOLD_ASSIGN_OR_RETURN(const KvCache loaded, load_cache(p.saved, cache_model_info(model.source()),
                                                             model.cache_shape(), session_.pool()));
    const std::vector<TokenId> reference = out.of(Condition::kBaseline).continuation.ids;
    KVFOLD_ASSIGN_OR_RETURN(const auto reference_logits, teacher_force(session_, baseline, last, reference));
    const RowNorms natural = mean_row_norms(baseline, p.conditions[0].inserted_end, baseline.size());
    for (Outcome& o : out.outcomes) {
      const ConditionCache* built = nullptr;
      for (const ConditionCache& c : p.conditions)
        if (c.condition == o.condition) built = &c;
      const KvCache& cache = built != nullptr ? built->cache : loaded;
      o.output = text_of(o.continuation);
      o.markers = find_markers(o.output, p.trial.trial->markers);
      o.stall = o.continuation.ended && o.continuation.ids.empty();
      o.natural = natural;
      if (built != nullptr) o.injected = mean_row_norms(cache, built->inserted_begin, built->inserted_end);
      o.perplexity_own = perplexity(o.continuation.log_probabilities);
      KVFOLD_ASSIGN_OR_RETURN(const auto under_baseline,
                              teacher_force(session_, baseline, last, o.continuation.ids));
      o.perplexity_baseline = perplexity(score(under_baseline, o.continuation.ids));
      KVFOLD_ASSIGN_OR_RETURN(const auto along_reference, teacher_force(session_, cache, last, reference));
      o.kl = mean_kl(reference_logits, along_reference);
    }
    return {};
  }

  std::string text_of(const Continuation& continuation) const {
    StreamDecoder decoder(session_.tokenizer());
    std::string text;
    for (const TokenId id : continuation.ids) text += decoder.push(id);
    return text + decoder.finish();
  }

  const Experiment& experiment_;
  const Options& options_;
  Session& session_;
  RunFolder& folder_;
  std::vector<Prepared> prepared_;
  std::vector<Continuation> replayed_;
  std::vector<TrialOutcome> outcomes_;
};

int terminal_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 140;
}

Status run(const Experiment& experiment, const Options& options) {
  OpenOptions open;
  open.cpu.threads = options.threads;
  open.cpu.precision = options.exact ? Precision::kExact : Precision::kInt8;
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, open_session(options.model, open));
  KVFOLD_ASSIGN_OR_RETURN(RunFolder folder, RunFolder::create(options.runs, experiment.phase));
  Run run(experiment, options, *session, folder);
  KVFOLD_RETURN_IF_ERROR(run.run());
  const bool colour = isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  fmt::print(
      "{}\nModel {}, {} tokens, greedy. Same-cache equals baseline, and transfer equals text, bit for "
      "bit.\n{}\n",
      format_table(experiment, run.outcomes(), terminal_width(), colour), options.model, options.count,
      folder.path() + "/trials.jsonl");
  return {};
}

int fail(std::string message) {
  for (char& c : message)
    if (c == '\n' || c == '\r') c = ' ';
  fmt::print(stderr, "kvfold: {}\n", message);
  return kBadInput;
}

}  // namespace

int run_experiment(int argc, char** argv, const Experiment& experiment) {
  Options options;
  CLI::App app(fmt::format("Phase {}: {}", experiment.phase, experiment.question));
  app.add_option("--model", options.model,
                 "a GGUF file, a checkpoint's folder, or a name of weights/models.json")
      ->capture_default_str();
  app.add_option("--runs", options.runs, "the folder in which the run's own is made")->capture_default_str();
  app.add_option("--threads", options.threads, "threads (default: one for every CPU allowed)")
      ->check(CLI::Range(1, 1024));
  app.add_option("-n", options.count, "most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "seed of the noise control")->capture_default_str();
  app.add_flag("--exact", options.exact, "f32 activations instead of int8 blocks");
  app.add_option("--replay", options.replay, "")->group("");  // the same-cache control's other process
  try {
    app.parse(argc, argv);
    const Status status = options.replay.empty() ? run(experiment, options) : run_replay(options.replay);
    return status.ok() ? 0 : fail(status.message());
  } catch (const CLI::ParseError& error) {
    return error.get_exit_code() == 0 ? app.exit(error) : fail(error.what());
  } catch (const std::bad_alloc&) {
    return fail("not enough memory");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}

}  // namespace kvfold
