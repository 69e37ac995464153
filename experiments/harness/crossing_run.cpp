// The program of phase 2e: options, records, table.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>

#include "engine/file.h"
#include "engine/kv/cache_metadata.h"
#include "engine/kv/ridge_projector.h"
#include "engine/printable.h"
#include "engine/random.h"
#include "experiments/backend_options.h"
#include "experiments/harness/crossing.h"
#include "experiments/harness/options.h"
#include "experiments/harness/progress.h"
#include "experiments/harness/run_folder.h"
#include "experiments/harness/table.h"
#include "experiments/say.h"

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

Json interval_json(double value, const Interval& interval, size_t n) {
  return {{"value", value}, {"low", interval.low}, {"high", interval.high}, {"n", n}};
}

// The bounds of the middle 95% of means of 2,000 draws of the values.
Interval mean_interval(std::span<const double> values, uint64_t seed) {
  constexpr int kDraws = 2000;
  Random random(seed);
  std::vector<double> means;
  for (int draw = 0; draw < kDraws; ++draw) {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += values[random.below(values.size())];
    means.push_back(sum / static_cast<double>(values.size()));
  }
  std::sort(means.begin(), means.end());
  return {means[kDraws / 40], means[kDraws - 1 - kDraws / 40]};
}

// Wilson's score interval of a share of n, 95% (Wilson 1927): it has a width where all or none are counted
// too.
Interval share_interval(double share, size_t n) {
  constexpr double kQuantile = 1.959963984540054;  // of the standard normal at 97.5%
  const double square = kQuantile * kQuantile / static_cast<double>(n);
  const double centre = share + square / 2;
  const double half = std::sqrt(square * (share * (1 - share) + square / 4));
  return {std::max(0.0, (centre - half) / (1 + square)), std::min(1.0, (centre + half) / (1 + square))};
}

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::vector<double> sums(std::vector<double> a, std::span<const double> b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

}  // namespace

Json summarise_texts(std::span<const Json> lines, uint64_t seed) {
  std::map<std::string, std::vector<double>> nll;
  std::vector<std::string> documents;
  for (const Json& line : lines) {
    nll[line.at("condition")].push_back(line.at("nll").get<double>());
    if (line.at("condition") == "none") documents.push_back(document_of(line.at("trial").get<std::string>()));
  }
  const std::vector<double>& none = nll.at("none");
  const std::vector<double>& text = nll.at("text");
  // (from - condition) / (none - text)
  const auto share = [&](const std::vector<double>& from, const std::vector<double>& condition) {
    return interval_json(gap_closed(none, text, condition) - gap_closed(none, text, from),
                         gap_interval(none, text, from, condition, documents, seed), condition.size());
  };
  Json out = Json::object();
  for (const char* condition : kCrossingConditions) {
    const auto at = nll.find(condition);
    if (at == nll.end()) continue;
    out[condition] = {{"nll", mean(at->second)}, {"g", share(none, at->second)}};
  }
  const auto other = nll.find("mismatched");
  const auto other_text = nll.find("mismatched-text");
  if (other == nll.end() || other_text == nll.end()) return out;
  const std::vector<double>& projected = nll.at("projected");
  out["text"]["g_pair"] = share(other_text->second, text);
  out["projected"]["g_pair"] = share(other->second, projected);
  out["projected"]["g_pair_less_text"] =
      share(sums(other->second, text), sums(projected, other_text->second));
  return out;
}

Json summarise_facts(std::span<const Json> lines, uint64_t seed) {
  std::map<std::pair<std::string, std::string>, std::vector<const Json*>> groups;
  for (const Json& line : lines) groups[{line.at("kind"), line.at("condition")}].push_back(&line);
  Json out = Json::object();
  for (const auto& entry_of : groups) {
    const auto& key = entry_of.first;
    const std::vector<const Json*>& group = entry_of.second;
    Json& entry = out[key.first][key.second];
    const auto values_of = [&](const auto& value_of) {
      std::vector<double> values;
      for (const Json* line : group) values.push_back(value_of(*line));
      return values;
    };
    const auto add_share = [&](const std::string& name, const auto& is_so) {
      const double share = mean(values_of([&](const Json& x) { return is_so(x) ? 1.0 : 0.0; }));
      entry[name] = interval_json(share, share_interval(share, group.size()), group.size());
    };
    for (const char* what : {"name", "city"}) {
      const std::string name = what;
      const auto margin = [&](const Json& x) {
        return x.at(name).get<double>() - x.at("twin_" + name).get<double>();
      };
      const std::vector<double> margins = values_of(margin);
      entry[name + "_margin"] = interval_json(mean(margins), mean_interval(margins, seed), margins.size());
      add_share(name + "_likelier", [&](const Json& x) { return margin(x) > 0; });
      add_share("said_" + name, [&](const Json& x) { return x.at("said_" + name).get<bool>(); });
    }
  }
  return out;
}

namespace {

struct Options {
  DriverOptions driver;  // its model is the source
  std::string target = "qwen2.5-coder-0.5b-instruct";
  std::string projector, reference, shuffled;
  std::string documents = corpus_path("documents.jsonl");
  std::string facts = corpus_path("facts.jsonl");
  std::string split = "test";
};

class Run {
 public:
  explicit Run(Options options) : options_(std::move(options)) {}

  Status run() {
    KVFOLD_RETURN_IF_ERROR(open());
    Json manifest = describe();
    KVFOLD_ASSIGN_OR_RETURN(
        RunFolder folder,
        RunFolder::open(options_.driver.runs, "2e", run_identity(manifest, what()), options_.driver.fresh));
    manifest.update(what());
    manifest["started"] = utc_now();
    manifest["complete"] = false;
    KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
    const std::vector<Batch> batches = this->batches();
    std::set<std::string> names;
    for (const Batch& batch : batches) names.insert(batch.name);
    KVFOLD_ASSIGN_OR_RETURN(const std::set<std::string> done,
                            folder.open_records("trials.jsonl", names, [](const nlohmann::json& x) {
                              return RunFolder::Group{x.value("group", ""), x.value("lines", int64_t{0})};
                            }));
    KVFOLD_RETURN_IF_ERROR(measure(folder, batches, done));
    const auto results = [&](const std::vector<nlohmann::json>& lines) { return summarise(lines); };
    KVFOLD_ASSIGN_OR_RETURN(manifest["results"], make_of_lines(folder.path() + "/trials.jsonl", results));
    manifest["finished"] = utc_now();
    manifest["complete"] = true;
    KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
    print(manifest["results"], folder.path());
    return {};
  }

 private:
  Result<std::unique_ptr<Session>> open_model(const std::string& name) const {
    DriverOptions options = options_.driver;
    options.model = name;
    return open_session(options);
  }

  // A projector of these two models. Errors: it is of others; both shapes are named.
  Result<std::unique_ptr<Projector>> open_projector(const std::string& path) {
    KVFOLD_ASSIGN_OR_RETURN(ProjectorData data, load_projector(path));
    for (const auto& [role, model, session] : {std::tuple{"source", &data.source, source_.get()},
                                               std::tuple{"target", &data.target, target_.get()}}) {
      const std::string& found = session->model().source().fingerprint;
      const CacheShape shape = session->model().cache_shape();
      if (found == model->fingerprint && shape == model->shape) continue;
      return Status::error(
          fmt::format("{}: its {} is {} ({} x {} x {}), but the {} here is {} ({} x {} x {})", path, role,
                      printable(model->fingerprint), model->shape.layers, model->shape.kv_heads,
                      model->shape.head_dim, role, found, shape.layers, shape.kv_heads, shape.head_dim));
    }
    Result<std::unique_ptr<Projector>> made = make_projector(std::move(data));
    if (!made.ok()) return made.status().with_prefix(path + ": ");
    return made;
  }

  Status open() {
    KVFOLD_ASSIGN_OR_RETURN(source_, open_model(options_.driver.model));
    KVFOLD_ASSIGN_OR_RETURN(target_, open_model(options_.target));
    KVFOLD_ASSIGN_OR_RETURN(projector_, open_projector(options_.projector));
    if (!options_.reference.empty()) {
      KVFOLD_ASSIGN_OR_RETURN(reference_, open_projector(options_.reference));
    }
    if (!options_.shuffled.empty()) {
      KVFOLD_ASSIGN_OR_RETURN(shuffled_, open_projector(options_.shuffled));
    }
    threads_ = std::make_unique<ThreadPool>(options_.driver.threads > 0 ? options_.driver.threads
                                                                        : ThreadPool::available());
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<CorpusText> lines,
                            read_corpus(options_.documents, options_.split, options_.driver.limit));
    int skipped = 0;
    texts_ = cut_texts(lines, source_->tokenizer(), target_->tokenizer(), &skipped);
    for (const Projector* p : {projector_.get(), reference_.get(), shuffled_.get()})
      if (p != nullptr) KVFOLD_RETURN_IF_ERROR(check_unseen(p->data(), texts_));
    KVFOLD_ASSIGN_OR_RETURN(facts_, read_facts(options_.facts, options_.driver.limit));
    KVFOLD_RETURN_IF_ERROR(hash_inputs());
    say(fmt::format("{}: {} texts of {} ({} too short), {} facts", options_.documents, texts_.size(),
                    options_.split, skipped, facts_.size()));
    return {};
  }

  // Texts, facts and cases that were changed are another run's.
  Status hash_inputs() {
    std::vector<std::string> paths = {options_.documents, options_.facts};
    for (const char* phase : kCasePhases) paths.push_back(prompt_set_path(phase));
    for (const std::string& path : paths) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
      inputs_.push_back(checksum(std::as_bytes(std::span(text))));
    }
    return {};
  }

  Json describe() const { return describe_run(*source_, options_.driver); }

  Json what() const {
    const auto describe_projector = [&](const Projector* p) -> Json {
      if (p == nullptr) return nullptr;
      Json out = {{"kind", p->data().kind}};
      for (const auto& [key, value] : p->data().notes)
        if (key != kTrainedOn && key != kChosenOn) out[key] = value;
      // Of the values themselves: another projector is another run.
      std::string sums;
      for (const auto& entry : p->data().tensors)
        sums += checksum(std::as_bytes(std::span(entry.second.data)));
      const Matrix flow = layer_flow(p->data(), *threads_);
      Json rows = Json::array();
      for (int64_t i = 0; i < flow.rows; ++i)
        rows.push_back(std::vector<float>(flow.row(i), flow.row(i) + flow.columns));
      out["flow"] = std::move(rows);
      if (const auto gates = p->data().tensors.find("fuser.gate"); gates != p->data().tensors.end())
        out["gates"] = gates->second.data;
      out["checksum"] = checksum(std::as_bytes(std::span(sums)));
      return out;
    };
    return {{"kvfold_trials", 1},
            {"phase", "2e"},
            {"question", "Does a cache cross from one model to another?"},
            {"target_model", options_.target},
            {"target_fingerprint", target_->model().source().fingerprint},
            {"documents", options_.documents},
            {"facts", options_.facts},
            {"prompts_xxh3", inputs_},
            {"split", options_.split},
            {"limit", options_.driver.limit},
            {"projector_file", options_.projector},
            {"projector", describe_projector(projector_.get())},
            {"reference", describe_projector(reference_.get())},
            {"shuffled", describe_projector(shuffled_.get())}};
  }

  Crossing crossing() const {
    return {source_.get(),   target_.get(),  projector_.get(),    reference_.get(),
            shuffled_.get(), threads_.get(), options_.driver.seed};
  }

  // Lines that are measured and written at once.
  struct Batch {
    std::string name;
    std::function<Result<std::vector<Json>>()> measure;
  };

  std::vector<Batch> batches() {
    constexpr size_t kBatch = 24;  // texts, and facts, at once
    std::vector<Batch> out;
    for (size_t begin = 0, end = 0; begin < texts_.size(); begin = end) {
      end = std::min(texts_.size(), begin + kBatch);
      if (texts_.size() - end == 1) ++end;  // at least two texts in the last batch
      const auto some = std::span(texts_).subspan(begin, end - begin);
      out.push_back(
          {fmt::format("texts {}-{}", begin, end), [this, some] { return measure_texts(crossing(), some); }});
    }
    for (size_t begin = 0; begin < facts_.size(); begin += kBatch) {
      const auto some = std::span(facts_).subspan(begin, std::min(kBatch, facts_.size() - begin));
      out.push_back({fmt::format("facts {}", begin),
                     [this, some] { return measure_facts(crossing(), some, kFactTokens); }});
    }
    out.push_back({"cases", [this] {
                     return measure_cases(crossing(), {"qa", "chat"}, options_.driver.count);
                   }});
    return out;
  }

  // Measures and appends the batches that are not there.
  static Status measure(RunFolder& folder, std::span<const Batch> batches,
                        const std::set<std::string>& done) {
    Progress progress("2e", batches.size() - done.size());
    for (const Batch& batch : batches) {
      if (done.contains(batch.name)) continue;
      KVFOLD_ASSIGN_OR_RETURN(std::vector<Json> lines, batch.measure());
      for (Json& line : lines) {
        line["group"] = batch.name;
        line["lines"] = lines.size();
      }
      KVFOLD_RETURN_IF_ERROR(folder.append(lines));
      progress.step(batch.name);
    }
    return {};
  }

  Json summarise(const std::vector<nlohmann::json>& lines) const {
    std::map<std::string, std::vector<Json>> by;
    for (const nlohmann::json& line : lines) by[line.at("measure")].emplace_back(line);
    return {{"texts", summarise_texts(by["text"], options_.driver.seed)},
            {"facts", summarise_facts(by["fact"], options_.driver.seed)}};
  }

  void print(const Json& results, const std::string& folder) const {
    fmt::print("2e: Does a cache cross from one model to another?\n{} -> {}, {} texts of {}\n\n",
               options_.driver.model, options_.target, texts_.size(), options_.split);
    fmt::print("{:16}{:>8}{:>8}  {}\n", "condition", "NLL", "G", "95%");
    for (const auto& [name, entry] : results["texts"].items())
      fmt::print("{:16}{:8.3f}{:8.3f}  [{:.3f}, {:.3f}]\n", name, entry["nll"].get<double>(),
                 entry["g"]["value"].get<double>(), entry["g"]["low"].get<double>(),
                 entry["g"]["high"].get<double>());
    for (const auto& [what, condition, key] :
         {std::tuple{"G_pair of projected caches", "projected", "g_pair"},
          std::tuple{"G_pair of the receiver's own", "text", "g_pair"},
          std::tuple{"the former less the latter", "projected", "g_pair_less_text"}}) {
      const Json& pair = results["texts"][condition][key];
      fmt::print("{}: {:.3f} [{:.3f}, {:.3f}]\n", what, pair["value"].get<double>(),
                 pair["low"].get<double>(), pair["high"].get<double>());
    }
    fmt::print("\n{:10}{:12}{:>14}{:>14}{:>11}{:>11}\n", "facts", "condition", "name likelier",
               "city likelier", "name said", "city said");
    for (const auto& [kind, conditions] : results["facts"].items())
      for (const auto& [name, entry] : conditions.items())
        fmt::print("{:10}{:12}{:14.2f}{:14.2f}{:11.2f}{:11.2f}\n", one_line(kind), one_line(name),
                   entry["name_likelier"]["value"].get<double>(),
                   entry["city_likelier"]["value"].get<double>(), entry["said_name"]["value"].get<double>(),
                   entry["said_city"]["value"].get<double>());
    fmt::print("\n{}\n", folder + "/trials.jsonl");
  }

  static constexpr int kFactTokens = 24;

  Options options_;
  std::unique_ptr<Session> source_, target_;
  std::unique_ptr<Projector> projector_, reference_, shuffled_;
  std::unique_ptr<ThreadPool> threads_;
  std::vector<ProjectionText> texts_;
  std::vector<Fact> facts_;
  std::vector<std::string> inputs_;  // checksums of the files that they and the cases are from
};

}  // namespace

int run_crossing(int argc, char** argv) {
  Options options;
  CLI::App app("2e: Does a cache cross from one model to another?");
  DriverOptions& driver = options.driver;
  app.add_option("--source,--model", driver.model, "the model whose cache crosses")->capture_default_str();
  app.add_option("--target", options.target, "the model that receives it")->capture_default_str();
  app.add_option("--projector", options.projector, "the projector that is judged")->required();
  app.add_option("--reference", options.reference, "another to judge beside it");
  app.add_option("--shuffled", options.shuffled, "one that was fitted to shuffled pairs");
  app.add_option("--documents", options.documents, "the corpus")->capture_default_str();
  app.add_option("--facts", options.facts, "sentences about invented people")->capture_default_str();
  app.add_option("--split", options.split, "of the corpus: test, or dev while something is chosen")
      ->check(CLI::IsMember({"test", "dev"}))
      ->capture_default_str();
  app.add_option("--runs", driver.runs, "the folder in which the run's own is made")->capture_default_str();
  add_backend_options(app, driver.backend, driver.device);
  app.add_option("--threads", driver.threads, "threads (default: one for every CPU allowed)")
      ->check(CLI::Range(1, 1024));
  app.add_option("-n", driver.count, "most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--limit", driver.limit, "most texts, and facts of each kind")
      ->check(CLI::Range(2, 1 << 20));
  app.add_option("--seed", driver.seed, "seed of noise and of intervals")->capture_default_str();
  app.add_flag("--exact", driver.exact, "f32 activations instead of int8 blocks");
  app.add_flag("--new", driver.fresh, "start a new run even where an unfinished one could be gone on with");
  return run_program(argc, argv, app, driver, [&] { return Run(std::move(options)).run(); });
}

}  // namespace kvfold
