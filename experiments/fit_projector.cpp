// Fits ridge projectors between two models, both ways, on the corpus of experiments/projector: sums over the
// training texts, lambda and rank by the NLL of continuations on dev, never by how well rows are matched.
#include <fmt/core.h>

#include <filesystem>
#include <map>

#include "engine/kv/cache_metadata.h"
#include "engine/kv/ridge.h"
#include "experiments/backend_options.h"
#include "experiments/harness/attention_mass.h"
#include "experiments/harness/options.h"
#include "experiments/harness/progress.h"
#include "experiments/harness/projection.h"
#include "experiments/say.h"

namespace kvfold {
namespace {

struct FitOptions {
  std::string source = "smollm2-135m-instruct";
  std::string target = "qwen2.5-coder-0.5b-instruct";
  std::string corpus;
  std::string out = "projectors";
  std::string sums;
  int train = 0;
  int dev = 96;
  std::vector<int> ranks = {256};
  std::vector<double> lambdas = {0.001, 0.003, 0.01, 0.03, 0.1};
  std::vector<int> curve;
  std::string metric = "lanes";
  std::string backend = "auto";
  int device = -1;
  int threads = 0;
  bool whole = false;
  bool shuffle = false;
  bool by_attention = false;
  double at_least = -1e9;
};

std::unique_ptr<ThreadPool> make_threads(int threads) {
  return std::make_unique<ThreadPool>(threads > 0 ? threads : ThreadPool::available());
}

ProjectorModel model_of(const Session& session) {
  const ModelSource& source = session.model().source();
  return {source.fingerprint, source.config.name, session.model().cache_shape()};
}

// One direction: where rows come from and go to, what is known of the dev texts, and the sums.
struct Direction {
  std::string name;
  Session* from;
  Session* to;
  bool back;  // the corpus' texts are aligned for the other direction
  RidgeSums sums;
  std::vector<KvCache> dev_sources;  // of dev contexts
  std::vector<std::vector<TokenId>> dev_continuations;
  std::vector<AlignedTokens> dev_tokens;
  std::vector<double> none, text;  // NLL of dev
};

AlignedTokens tokens_of(const ProjectionText& text, bool back) {
  if (!back) return text.context;
  return {text.context.target, text.context.source, text.back};
}

// What a model is called in the names of files: its own name, or where it is a path the last part of that.
std::string file_name(const std::string& model) {
  const std::filesystem::path path(model);
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

class Fit {
 public:
  explicit Fit(FitOptions options) : options_(std::move(options)), threads_(make_threads(options_.threads)) {}

  Status run() {
    KVFOLD_RETURN_IF_ERROR(open());
    KVFOLD_ASSIGN_OR_RETURN(dev_, texts("dev", options_.dev));
    KVFOLD_ASSIGN_OR_RETURN(train_, texts("train", options_.train));
    // Before hours of work, not behind them.
    for (const std::string& folder : {options_.out, options_.sums}) {
      std::error_code error;
      if (!folder.empty()) std::filesystem::create_directories(folder, error);
      if (error) return Status::error(fmt::format("{}: cannot be made: {}", folder, error.message()));
    }
    KVFOLD_RETURN_IF_ERROR(prepare_dev());
    KVFOLD_RETURN_IF_ERROR(collect());
    for (Direction& d : directions_) KVFOLD_RETURN_IF_ERROR(finish(d));
    return {};
  }

 private:
  Result<std::unique_ptr<Session>> open_model(const std::string& name) const {
    DriverOptions open;
    open.model = name;
    open.backend = options_.backend;
    open.device = options_.device;
    open.threads = options_.threads;
    return open_session(open);
  }

  Status open() {
    KVFOLD_ASSIGN_OR_RETURN(source_, open_model(options_.source));
    if (options_.target != options_.source) {
      KVFOLD_ASSIGN_OR_RETURN(target_, open_model(options_.target));
    }
    Session& target = target_ == nullptr ? *source_ : *target_;
    const CacheShape a = source_->model().cache_shape();
    const CacheShape b = target.model().cache_shape();
    kvfold::say(fmt::format("sums of {} to {} take {:.0f} MB of memory, and twice that where they are solved",
                            options_.source, options_.target,
                            static_cast<double>(RidgeSums::bytes(a, b)) * 1e-6));
    const int most = std::min(row_width(a), row_width(b));
    for (const int rank : options_.ranks)
      if (rank > most && !options_.whole)
        return Status::error(fmt::format(
            "--rank {}: expected at most {}, the numbers in a row of the smaller cache", rank, most));
    directions_.push_back({file_name(options_.source) + "-to-" + file_name(options_.target),
                           source_.get(),
                           &target,
                           false,
                           RidgeSums(a, b),
                           {},
                           {},
                           {},
                           {},
                           {}});
    if (target_ != nullptr)
      directions_.push_back({file_name(options_.target) + "-to-" + file_name(options_.source),
                             &target,
                             source_.get(),
                             true,
                             RidgeSums(b, a),
                             {},
                             {},
                             {},
                             {},
                             {}});
    return {};
  }

  Session& target() { return *directions_[0].to; }

  Result<std::vector<ProjectionText>> texts(const std::string& split, int limit) {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<CorpusText> lines, read_corpus(options_.corpus, split, limit));
    int skipped = 0;
    std::vector<ProjectionText> out = cut_texts(lines, source_->tokenizer(), target().tokenizer(), &skipped);
    kvfold::say(fmt::format("{}: {} texts, {} too short", split, out.size(), skipped));
    return out;
  }

  Status prepare_dev() {
    for (Direction& d : directions_) {
      for (const ProjectionText& text : dev_) {
        d.dev_tokens.push_back(tokens_of(text, d.back));
        d.dev_continuations.push_back(d.back ? text.source_continuation : text.continuation);
      }
      std::vector<const std::vector<TokenId>*> from;
      std::vector<const std::vector<TokenId>*> to;
      for (const AlignedTokens& tokens : d.dev_tokens) {
        from.push_back(&tokens.source);
        to.push_back(&tokens.target);
      }
      KVFOLD_ASSIGN_OR_RETURN(d.dev_sources, context_caches(*d.from, from));
      KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> truth, context_caches(*d.to, to));
      KVFOLD_ASSIGN_OR_RETURN(d.text, dev_nll(d, truth));
      KVFOLD_ASSIGN_OR_RETURN(d.none, dev_nll(d, std::vector<KvCache>(truth.size(), d.to->make_cache())));
    }
    return {};
  }

  Result<std::vector<double>> dev_nll(const Direction& d, std::span<const KvCache> caches) const {
    std::vector<const std::vector<TokenId>*> continuations;
    for (const auto& ids : d.dev_continuations) continuations.push_back(&ids);
    return continuation_nll(*d.to, caches, continuations);
  }

  // Share of the gap that a projector closes on dev.
  Result<double> judge(const Direction& d, ProjectorData data) const {
    data.source = model_of(*d.from);
    data.target = model_of(*d.to);
    KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Projector> projector, make_projector(std::move(data)));
    std::vector<KvCache> caches;
    for (size_t i = 0; i < d.dev_tokens.size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(KvCache cache, project(*projector, d.dev_sources[i], d.dev_tokens[i],
                                                     d.to->pool(), "projected", *threads_));
      caches.push_back(std::move(cache));
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<double> nll, dev_nll(d, caches));
    return gap_closed(d.none, d.text, nll);
  }

  // Sums of another kind are other sums.
  std::string sums_path(const Direction& d) const {
    return fmt::format("{}/{}{}{}.sums", options_.sums, d.name, options_.shuffle ? ".shuffled" : "",
                       options_.by_attention ? ".by-attention" : "");
  }

  bool have_sums() const {
    return !options_.sums.empty() && std::all_of(directions_.begin(), directions_.end(), [&](const auto& d) {
      return std::filesystem::exists(sums_path(d));
    });
  }

  // What is in the sums: rows of these models for the first texts, in order.
  std::string identity(const Direction& d) const {
    std::string all = d.from->model().source().fingerprint + d.to->model().source().fingerprint;
    all += options_.shuffle ? " shuffled" : options_.by_attention ? " by attention" : " alike";
    const auto count = static_cast<size_t>(d.sums.texts());
    if (count > train_.size()) return "";
    for (const ProjectionText& text : std::span(train_).first(count))
      all += '\n' + text.id + '\n' + text.context_text;
    return checksum(std::as_bytes(std::span(all)));
  }

  // Texts whose rows are in the sums already.
  Result<size_t> load_sums() {
    if (!have_sums()) return size_t{0};
    for (Direction& d : directions_) {
      std::string found;
      KVFOLD_ASSIGN_OR_RETURN(d.sums, RidgeSums::load(sums_path(d), d.from->model().cache_shape(),
                                                      d.to->model().cache_shape(), &found));
      if (found != identity(d))
        return Status::error(
            fmt::format("{}: sums of {} texts, of which some are not the first that are asked "
                        "for here, or of other models (delete it to begin anew)",
                        sums_path(d), d.sums.texts()));
      if (d.sums.texts() != directions_[0].sums.texts())
        return Status::error(fmt::format("{}: sums of {} texts, beside those of {}", sums_path(d),
                                         d.sums.texts(), directions_[0].sums.texts()));
    }
    return static_cast<size_t>(directions_[0].sums.texts());
  }

  // Brings the sums to a state that can be saved or solved.
  Status flush(bool save) {
    for (Direction& d : directions_) {
      d.sums.flush(*threads_);
      if (save && !options_.sums.empty()) KVFOLD_RETURN_IF_ERROR(d.sums.save(sums_path(d), identity(d)));
    }
    return {};
  }

  Status collect() {
    KVFOLD_ASSIGN_OR_RETURN(const size_t done, load_sums());
    constexpr size_t kBatch = 16;       // texts fed at once
    constexpr size_t kSaved = 16 * 32;  // texts between which sums are saved
    if (done >= train_.size()) return {};
    Progress progress("rows", (train_.size() - done + kBatch - 1) / kBatch);
    for (size_t begin = done, end = 0; begin < train_.size(); begin = end) {
      end = std::min(train_.size(), begin + kBatch);
      if (options_.shuffle && train_.size() - end == 1) ++end;
      KVFOLD_RETURN_IF_ERROR(add_texts(std::span(train_).subspan(begin, end - begin)));
      progress.step(fmt::format("{} texts", end));
      for (const int at : options_.curve)
        if (begin < static_cast<size_t>(at) && static_cast<size_t>(at) <= end)
          for (Direction& d : directions_) KVFOLD_RETURN_IF_ERROR(point(d));
      if (end % kSaved == 0) KVFOLD_RETURN_IF_ERROR(flush(true));
    }
    return flush(true);
  }

  Status add_texts(std::span<const ProjectionText> texts) {
    if (options_.shuffle && texts.size() < 2)
      return Status::error("--shuffle: one text, expected more: there is none to take other rows from");
    std::vector<const std::vector<TokenId>*> source;
    std::vector<const std::vector<TokenId>*> target;
    for (const ProjectionText& text : texts) {
      source.push_back(&text.context.source);
      target.push_back(&text.context.target);
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> a, context_caches(*source_, source));
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> b, context_caches(this->target(), target));
    for (size_t i = 0; i < texts.size(); ++i)
      for (Direction& d : directions_) {
        const KvCache& from = d.back ? b[i] : a[i];
        const KvCache& to = d.back ? a[i] : b[i];
        const std::vector<float> x = gather_rows(from, d.back ? texts[i].back : texts[i].context.source_row);
        const std::vector<float> y = options_.shuffle ? other_rows(d.back ? a : b, i) : all_rows(to);
        std::vector<float> weights;
        if (options_.by_attention && to.size() > 1) {
          const std::vector<TokenId>& next = d.back ? texts[i].source_continuation : texts[i].continuation;
          KVFOLD_ASSIGN_OR_RETURN(weights, row_attention(*d.to, to, next));
        }
        d.sums.add(x.data(), y.data(), to.size(), weights.empty() ? nullptr : weights.data(), *threads_);
      }
    return {};
  }

  // As many rows of the next text, from its beginning again where it is shorter: pairs that do not belong
  // together.
  static std::vector<float> other_rows(std::span<const KvCache> caches, size_t i) {
    const KvCache& other = caches[(i + 1) % caches.size()];
    std::vector<int> which;
    for (int r = 0; r < caches[i].size(); ++r) which.push_back(r % other.size());
    return gather_rows(other, which);
  }

  // A point of the learning curve: the whole solution for the middle lambda.
  Status point(Direction& d) {
    d.sums.flush(*threads_);
    const double lambda = options_.lambdas[options_.lambdas.size() / 2];
    KVFOLD_ASSIGN_OR_RETURN(const RidgeSolution solution, RidgeSolution::solve(d.sums, lambda, *threads_));
    KVFOLD_ASSIGN_OR_RETURN(const double closed, judge(d, solution.whole()));
    say(d,
        {{"texts", d.sums.texts()}, {"rows", d.sums.rows()}, {"lambda", lambda}, {"dev_gap_closed", closed}});
    return {};
  }

  void say(const Direction& d, const nlohmann::ordered_json& line) const {
    nlohmann::ordered_json out = {{"direction", d.name}};
    out.update(line);
    fmt::print("{}\n", out.dump());
    std::fflush(stdout);
  }

  Status finish(Direction& d) {
    double best = -1e9;
    double best_lambda = 0;
    for (const double lambda : options_.lambdas) {
      KVFOLD_ASSIGN_OR_RETURN(const RidgeSolution solution, RidgeSolution::solve(d.sums, lambda, *threads_));
      KVFOLD_ASSIGN_OR_RETURN(const double closed, judge(d, solution.whole()));
      say(d, {{"texts", d.sums.texts()}, {"lambda", lambda}, {"dev_gap_closed", closed}});
      if (closed > best) {
        best = closed;
        best_lambda = lambda;
      }
    }
    KVFOLD_ASSIGN_OR_RETURN(const RidgeSolution solution,
                            RidgeSolution::solve(d.sums, best_lambda, *threads_));
    if (options_.whole) return write(d, solution.whole(), solution, best);
    const RidgeMetric metric = options_.metric == "lanes" ? RidgeMetric::kLanes : RidgeMetric::kDimensions;
    for (size_t i = 0; i < options_.ranks.size(); ++i) {
      const int rank = options_.ranks[i];
      KVFOLD_ASSIGN_OR_RETURN(ProjectorData reduced, solution.reduced(rank, metric, *threads_));
      KVFOLD_ASSIGN_OR_RETURN(const double closed, judge(d, reduced));
      say(d,
          {{"lambda", best_lambda}, {"rank", rank}, {"metric", options_.metric}, {"dev_gap_closed", closed}});
      if (i + 1 == options_.ranks.size()) return write(d, std::move(reduced), solution, closed);
    }
    return {};
  }

  Status write(const Direction& d, ProjectorData data, const RidgeSolution& solution, double closed) const {
    if (closed < options_.at_least)
      return Status::error(fmt::format("{}: {:.4f} of the gap is closed on dev, expected at least {}", d.name,
                                       closed, options_.at_least));
    data.source = model_of(*d.from);
    data.target = model_of(*d.to);
    data.notes["dev_gap_closed"] = fmt::format("{:.4f}", closed);
    data.notes["dev_texts"] = std::to_string(d.dev_tokens.size());
    data.notes["explained"] = nlohmann::json(solution.explained()).dump();
    data.notes[kTrainedOn] = id_hashes(std::span(train_).first(static_cast<size_t>(d.sums.texts())));
    data.notes[kChosenOn] = id_hashes(dev_);
    data.notes["shuffled"] = options_.shuffle ? "true" : "false";
    data.notes["rows_count"] = options_.by_attention ? "by the attention that they get" : "alike";
    const std::string path = options_.out + "/" + d.name + ".safetensors";
    KVFOLD_RETURN_IF_ERROR(save_projector(data, path));
    kvfold::say(
        fmt::format("{}: {:.1f} MB", path, static_cast<double>(std::filesystem::file_size(path)) * 1e-6));
    return {};
  }

  FitOptions options_;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<Session> source_, target_;
  std::vector<Direction> directions_;
  std::vector<ProjectionText> dev_, train_;
};

}  // namespace
}  // namespace kvfold

int main(int argc, char** argv) {
  using namespace kvfold;
  CLI::App app("Fits ridge projectors between two models, both ways.", "fit_projector");
  FitOptions o;
  o.corpus = corpus_path("documents.jsonl");
  app.add_option("--source", o.source, "a model, as other programs take it")->capture_default_str();
  app.add_option("--target", o.target, "another, or the same")->capture_default_str();
  app.add_option("--corpus", o.corpus, "documents.jsonl of make corpus")->capture_default_str();
  app.add_option("--out", o.out, "the folder that gets the projectors")->capture_default_str();
  app.add_option("--sums", o.sums,
                 "a folder to keep the sums in: what is in them already is not computed again");
  app.add_option("--train", o.train, "most training texts (default: all)")->check(CLI::Range(1, 1 << 24));
  app.add_option("--dev", o.dev, "texts to choose lambda on")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--rank", o.ranks, "ranks to judge; the last is written")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 14))
      ->capture_default_str();
  app.add_option("--lambda", o.lambdas, "to choose from, in units of the variance")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--curve", o.curve, "judge the solution after so many texts too")->delimiter(',');
  app.add_option("--metric", o.metric, "what a rank is to keep: dimensions alike, or as lanes vary")
      ->check(CLI::IsMember({"dimensions", "lanes"}))
      ->capture_default_str();
  add_backend_options(app, o.backend, o.device);
  app.add_option("--threads", o.threads, "threads (default: one for every CPU allowed)")
      ->check(CLI::Range(1, 1024));
  CLI::Option* shuffle = app.add_flag(
      "--shuffle", o.shuffle, "fit to rows of different texts: a control, from which nothing can be learned");
  app.add_option("--at-least", o.at_least, "fail where less of the gap is closed on dev");
  app.add_flag("--by-attention", o.by_attention,
               "a row's error counts as much as the attention that it gets from the continuation")
      ->excludes(shuffle);
  app.add_flag("--whole", o.whole, "write full rank, in f32");
  DriverOptions driver;
  return run_program(argc, argv, app, driver, [&] { return Fit(std::move(o)).run(); });
}
