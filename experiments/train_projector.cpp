// Trains a projector between two models through the frozen receiver, beginning from a ridge (fit_projector
// makes them). A training that was killed goes on from its checkpoint by the same command, to the same bytes.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "engine/kv/cache_metadata.h"
#include "engine/printable.h"
#include "engine/train/trainer.h"
#include "experiments/backend_options.h"
#include "experiments/harness/options.h"
#include "experiments/harness/projection.h"
#include "experiments/say.h"

namespace kvfold {
namespace {

struct Options {
  std::string source = "smollm2-135m-instruct";
  std::string target = "qwen2.5-coder-0.5b-instruct";
  std::string corpus = corpus_path("documents.jsonl");
  std::string from;
  std::string out;
  TrainerOptions trainer;
  int batch = 8;
  int train = 0;
  int dev = 64;
  int evaluate_every = 50;
  int save_every = 25;
  int patience = 4;
  std::string backend = "auto";  // of the contexts' passes; training itself is the CPU's
  int device = -1;
  int threads = 0;
  bool fresh = false;
  bool small = false;
};

// A text and, while it is in use, its rows.
struct Prepared {
  const ProjectionText* text;
  std::vector<float> source;  // [context rows][source width]
  std::vector<float> states;  // of the receiver behind the true rows
  TrainingText training() const {
    return {source.data(), static_cast<int>(text->context.target.size()), text->continuation,
            states.empty() ? nullptr : states.data()};
  }
};

std::vector<TrainingText> training(const std::vector<Prepared>& texts) {
  std::vector<TrainingText> out;
  for (const Prepared& text : texts) out.push_back(text.training());
  return out;
}

using Clock = std::chrono::steady_clock;

class Training {
 public:
  explicit Training(Options options)
      : o_(std::move(options)),
        pool_(o_.threads > 0 ? o_.threads : ThreadPool::available()),
        gemm_(pool_, *select_cpu_kernels()) {}

  Status run() {
    KVFOLD_RETURN_IF_ERROR(open());
    KVFOLD_RETURN_IF_ERROR(begin());
    KVFOLD_RETURN_IF_ERROR(measure_dev());
    if (trainer_->state().curve.empty()) KVFOLD_RETURN_IF_ERROR(evaluate());
    begun_ = Clock::now();
    first_step_ = trainer_->state().step;
    while (trainer_->state().step < o_.trainer.steps && trainer_->state().stale < o_.patience)
      KVFOLD_RETURN_IF_ERROR(step());
    KVFOLD_RETURN_IF_ERROR(trainer_->save(checkpoint(), identity_));
    const TrainingState& state = trainer_->state();
    fmt::print(
        "{}: {} steps, best at {} with a dev NLL of {:.4f}, {:.1f}% of the gap from no cache ({:.4f}) to the "
        "true one ({:.4f})\n",
        o_.out, state.step, state.best_step, state.best, 100 * gap(state.best), none_, truth_);
    return write_out();
  }

 private:
  std::string checkpoint() const { return o_.out + ".checkpoint"; }

  Result<std::unique_ptr<Session>> open_model(const std::string& name) const {
    DriverOptions open;
    open.model = name;
    open.backend = o_.backend;
    open.device = o_.device;
    open.threads = o_.threads;
    return open_session(open);
  }

  Result<std::vector<ProjectionText>> texts(const std::string& split, int limit) {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<CorpusText> lines, read_corpus(o_.corpus, split, limit));
    int skipped = 0;
    std::vector<ProjectionText> out = cut_texts(lines, source_->tokenizer(), target_->tokenizer(), &skipped);
    say(fmt::format("{}: {} texts, {} too short", split, out.size(), skipped));
    if (out.empty())
      return Status::error(fmt::format("{}: no text of the split '{}' is long enough", o_.corpus, split));
    return out;
  }

  Status open() {
    KVFOLD_ASSIGN_OR_RETURN(source_, open_model(o_.source));
    KVFOLD_ASSIGN_OR_RETURN(target_, open_model(o_.target));
    KVFOLD_ASSIGN_OR_RETURN(train_, texts("train", o_.train));
    KVFOLD_ASSIGN_OR_RETURN(dev_, texts("dev", o_.dev));
    return {};
  }

  Status begin() {
    KVFOLD_ASSIGN_OR_RETURN(ProjectorData start, load_projector(o_.from));
    for (const auto& [role, session, model] : {std::tuple{"source", source_.get(), &start.source},
                                               std::tuple{"target", target_.get(), &start.target}}) {
      const std::string& fingerprint = session->model().source().fingerprint;
      const CacheShape shape = session->model().cache_shape();
      if (model->fingerprint != fingerprint)
        return Status::error(
            fmt::format("{}: metadata '{}.fingerprint': found {} ({}), expected {}: of another model",
                        o_.from, role, printable(model->fingerprint), printable(model->name), fingerprint));
      if (model->shape != shape)
        return Status::error(
            fmt::format("{}: metadata '{}.*': found {} layers x {} KV heads x {}, expected {} x {} x {}",
                        o_.from, role, model->shape.layers, model->shape.kv_heads, model->shape.head_dim,
                        shape.layers, shape.kv_heads, shape.head_dim));
    }
    // What it has seen goes on into the notes of what is made of it.
    KVFOLD_RETURN_IF_ERROR(check_unseen(start, {}).with_prefix(o_.from + ": "));
    identity_ = identity(start);
    Result<std::unique_ptr<ProjectorTrainer>> trainer =
        ProjectorTrainer::create(std::move(start), o_.trainer, gemm_);
    if (!trainer.ok()) return trainer.status().with_prefix(o_.from + ": ");
    trainer_ = std::move(*trainer);
    const ModelSource& receiver = target_->model().source();
    const int64_t tokens = int64_t{o_.batch} * (kContinuationTokens - 1);
    const int64_t rows = tokens + int64_t{o_.batch} * kContextTokens;
    const ModelConfig& config = target_->model().config();
    const auto megabytes = [](int64_t bytes) { return 1e-6 * static_cast<double>(bytes); };
    say(
        fmt::format("memory: {} parameters with gradients and moments {:.0f} MB, a batch {:.0f} MB, the "
                    "receiver's decoded weights {:.0f} MB",
                    trainer_->parameters(), megabytes(trainer_->bytes()),
                    megabytes(Receiver::bytes(config, tokens, rows, kContextTokens + kContinuationTokens)),
                    o_.small ? 0.0 : megabytes(Receiver::decoded_bytes(receiver))));
    receiver_ =
        Receiver::create(receiver, gemm_, o_.small ? Receiver::Weights::kAsMet : Receiver::Weights::kOnce);
    if (!o_.fresh && std::filesystem::exists(checkpoint())) {
      KVFOLD_RETURN_IF_ERROR(trainer_->load(checkpoint(), identity_));
      say(fmt::format("{}: goes on behind step {}", checkpoint(), trainer_->state().step));
      return {};
    }
    constexpr int kTexts = 32;
    KVFOLD_ASSIGN_OR_RETURN(
        const std::vector<Prepared> sample,
        prepare(train_, batch_at(0, std::min(kTexts, count()), count(), o_.trainer.seed), false));
    trainer_->normalise(training(sample));
    return {};
  }

  int count() const { return static_cast<int>(train_.size()); }

  // All that decides the result.
  std::string identity(const ProjectorData& start) const {
    std::string texts;
    for (const auto* part : {&train_, &dev_})
      for (const ProjectionText& text : *part) {
        texts += text.id + '\n' + text.context_text + '\n';
        for (const TokenId id : text.continuation) texts += std::to_string(id) + ' ';
      }
    std::string tensors;
    for (const auto& [name, tensor] : start.tensors)
      tensors += name + checksum(std::as_bytes(std::span(tensor.data)));
    const TrainerOptions& t = o_.trainer;
    const auto sum = [](const std::string& text) { return checksum(std::as_bytes(std::span(text))); };
    return nlohmann::json{{"from", sum(tensors)},
                          {"source", start.source.fingerprint},
                          {"target", start.target.fingerprint},
                          {"documents", sum(texts)},
                          {"kind", t.kind},
                          {"hidden", t.hidden},
                          {"window", t.window},
                          {"steps", t.steps},
                          {"rate", t.rate},
                          {"decay", t.adam.decay},
                          {"clip", t.clip},
                          {"teacher", t.teacher_share},
                          {"seed", t.seed},
                          {"batch", o_.batch},
                          {"evaluate", o_.evaluate_every}}
        .dump();
  }

  // Runs the contexts through the source, and with a teacher through the receiver too.
  Result<std::vector<Prepared>> prepare(const std::vector<ProjectionText>& from,
                                        const std::vector<int>& which, bool teach) {
    std::vector<const std::vector<TokenId>*> contexts;
    for (const int i : which) contexts.push_back(&from[i].context.source);
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> caches, context_caches(*source_, contexts));
    std::vector<Prepared> out;
    for (size_t i = 0; i < which.size(); ++i)
      out.push_back({&from[which[i]], gather_rows(caches[i], from[which[i]].context.source_row), {}});
    if (!teach) return out;
    const auto width = static_cast<size_t>(target_->model().config().model_dim);
    for (Prepared& text : out) text.states.resize((text.text->continuation.size() - 1) * width);
    KVFOLD_RETURN_IF_ERROR(read_truth(out).status());
    return out;
  }

  // The mean NLL behind the true rows; leaves the states where there is room for them.
  Result<double> read_truth(std::vector<Prepared>& texts) {
    std::vector<const std::vector<TokenId>*> contexts;
    for (const Prepared& text : texts) contexts.push_back(&text.text->context.target);
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> caches, context_caches(*target_, contexts));
    std::vector<std::vector<float>> rows;
    std::vector<Reading> readings;
    for (size_t i = 0; i < texts.size(); ++i) {
      rows.push_back(all_rows(caches[i]));
      Reading reading{rows[i].data(), caches[i].size(), texts[i].text->continuation};
      reading.states = texts[i].states.empty() ? nullptr : texts[i].states.data();
      readings.push_back(reading);
    }
    return receiver_->read(readings);
  }

  // What no cache and the true one give on dev, and its texts' rows.
  Status measure_dev() {
    double none = 0;
    double truth = 0;
    int64_t scored = 0;
    for (int begin = 0; begin < static_cast<int>(dev_.size()); begin += o_.batch) {
      std::vector<int> which;
      for (int i = begin; i < std::min<int>(static_cast<int>(dev_.size()), begin + o_.batch); ++i)
        which.push_back(i);
      KVFOLD_ASSIGN_OR_RETURN(std::vector<Prepared> batch, prepare(dev_, which, false));
      std::vector<Reading> alone;
      int64_t tokens = 0;
      for (const Prepared& text : batch) {
        alone.push_back({nullptr, 0, text.text->continuation});
        tokens += alone.back().scored();
      }
      KVFOLD_ASSIGN_OR_RETURN(const double without, receiver_->read(alone));
      KVFOLD_ASSIGN_OR_RETURN(const double with, read_truth(batch));
      none += without * static_cast<double>(tokens);
      truth += with * static_cast<double>(tokens);
      scored += tokens;
      for (Prepared& text : batch) prepared_dev_.push_back(std::move(text));
    }
    none_ = none / static_cast<double>(scored);
    truth_ = truth / static_cast<double>(scored);
    return {};
  }

  double gap(double nll) const { return (none_ - nll) / (none_ - truth_); }

  Status evaluate() {
    KVFOLD_ASSIGN_OR_RETURN(const double nll,
                            trainer_->evaluate(training(prepared_dev_), o_.batch, *receiver_));
    trainer_->note(nll);
    say(fmt::format("step {}: dev NLL {:.4f}, {:.1f}% of the gap{}", trainer_->state().step, nll,
                    100 * gap(nll), trainer_->state().stale == 0 ? "" : ", no better"));
    if (trainer_->state().stale > 0) return {};
    return write_out();
  }

  Status step() {
    const int64_t at = trainer_->state().step;
    KVFOLD_ASSIGN_OR_RETURN(
        const std::vector<Prepared> batch,
        prepare(train_, batch_at(at, o_.batch, count(), o_.trainer.seed), o_.trainer.teacher_share > 0));
    KVFOLD_ASSIGN_OR_RETURN(const double nll, trainer_->step(training(batch), *receiver_));
    for (const Prepared& text : batch) tokens_ += static_cast<int64_t>(text.text->continuation.size()) - 1;
    report(nll);
    const int64_t step = at + 1;
    if (step % o_.evaluate_every == 0 || step == o_.trainer.steps) KVFOLD_RETURN_IF_ERROR(evaluate());
    if (step % o_.save_every == 0) return trainer_->save(checkpoint(), identity_);
    return {};
  }

  void report(double nll) const {
    const int64_t step = trainer_->state().step;
    const double seconds = std::chrono::duration<double>(Clock::now() - begun_).count();
    const double left =
        seconds / static_cast<double>(step - first_step_) * static_cast<double>(o_.trainer.steps - step);
    say(fmt::format("step {}/{}  loss {:.4f}  gradient {:.2f}  {:.1f} tokens/s  {:.0f} min left", step,
                    o_.trainer.steps, nll, trainer_->gradient_norm(), static_cast<double>(tokens_) / seconds,
                    left / 60));
  }

  Status write_out() const {
    ProjectorData data = trainer_->best();
    const TrainingState& state = trainer_->state();
    data.notes[kTrainedOn] += id_hashes(train_);
    data.notes[kChosenOn] += id_hashes(dev_);
    // What the ridge's fit said of itself is not so any more.
    data.notes.erase("explained");
    data.notes["dev_gap_closed"] = fmt::format("{:.4f}", gap(state.best));
    data.notes["dev_texts"] = std::to_string(dev_.size());
    data.notes["training"] = identity_;
    data.notes["training.steps"] = std::to_string(state.step);
    data.notes["training.best_step"] = std::to_string(state.best_step);
    data.notes["training.dev"] = fmt::format("NLL {:.4f}; without a cache {:.4f}, behind the true one {:.4f}",
                                             state.best, none_, truth_);
    data.notes["training.curve"] = nlohmann::json(state.curve).dump();
    return save_projector(data, o_.out);
  }

  Options o_;
  ThreadPool pool_;
  Gemm gemm_;
  std::unique_ptr<Session> source_, target_;
  std::unique_ptr<Receiver> receiver_;
  std::unique_ptr<ProjectorTrainer> trainer_;
  std::vector<ProjectionText> train_, dev_;
  std::vector<Prepared> prepared_dev_;
  std::string identity_;
  double none_ = 0, truth_ = 0;
  Clock::time_point begun_;
  int64_t first_step_ = 0, tokens_ = 0;
};

void add_training_options(CLI::App& app, Options& o) {
  app.add_option("--source", o.source, "the model whose rows are projected: a name, an alias or a path")
      ->capture_default_str();
  app.add_option("--target", o.target, "the model that receives them")->capture_default_str();
  app.add_option("--corpus", o.corpus, "documents.jsonl")->capture_default_str();
  app.add_option("--from", o.from, "a ridge projector with factors, or one of the kind to go on with")
      ->required();
  app.add_option("--out", o.out, "the projector; OUT.checkpoint lies beside it")->required();
  app.add_option("--kind", o.trainer.kind, "ridge: its factors are trained; mlp and fuser add to it")
      ->check(CLI::IsMember({"ridge", "mlp", "fuser"}))
      ->capture_default_str();
  app.add_option("--hidden", o.trainer.hidden, "hidden width of mlp, of fuser that of each layer's K and V")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--window", o.trainer.window, "source layers that each layer's fuser sees")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--steps", o.trainer.steps, "of training, at most")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--batch", o.batch, "texts a step")->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--rate", o.trainer.rate, "of learning: deviations that an output may move a step, about")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  app.add_option("--decay", o.trainer.adam.decay, "of weights")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  app.add_option("--clip", o.trainer.clip, "the gradients' largest norm")
      ->check(CLI::Range(1e-9, 1e9))
      ->capture_default_str();
  app.add_option(
         "--teacher", o.trainer.teacher_share,
         "share of the loss that is the cross-entropy with what the receiver says behind the true rows")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--seed", o.trainer.seed, "of the order of texts and of new tensors")->capture_default_str();
  app.add_option("--train", o.train, "training texts, the first ones; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--dev", o.dev, "dev texts, likewise")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--evaluate-every", o.evaluate_every, "steps")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--save-every", o.save_every, "steps")->check(CLI::Range(1, 1000000))->capture_default_str();
  app.add_option("--patience", o.patience, "evaluations without a better one before it stops")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  add_backend_options(app, o.backend, o.device);
  app.add_option("--threads", o.threads, "0: one for each CPU")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_flag("--small", o.small,
               "decode the receiver's weights as they are met: slower, four bytes a weight less");
  app.add_flag("--fresh", o.fresh, "do not go on from a checkpoint");
}

}  // namespace
}  // namespace kvfold

int main(int argc, char** argv) {
  CLI::App app{"Trains a projector between two models' caches through the frozen receiver."};
  kvfold::Options options;
  kvfold::add_training_options(app, options);
  kvfold::DriverOptions driver;
  return kvfold::run_program(argc, argv, app, driver,
                             [&] { return kvfold::Training(std::move(options)).run(); });
}
