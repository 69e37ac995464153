#include "experiments/harness/signatures.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "engine/file.h"
#include "engine/kv/ops.h"
#include "engine/printable.h"
#include "experiments/harness/cache_signature.h"
#include "experiments/harness/options.h"
#include "experiments/harness/progress.h"
#include "experiments/harness/scoring.h"
#include "experiments/harness/table.h"

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

double mean(const std::vector<double>& x) {
  return x.empty() ? 0 : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

std::vector<double> row_means(const std::vector<std::vector<double>>& rows) {
  std::vector<double> out;
  for (const std::vector<double>& row : rows) out.push_back(mean(row));
  return out;
}

// Each statistic of one part by layer, and its mean over layers.
void add_part(Json& line, const std::string& prefix, const std::string& suffix, const PartSignature& part) {
  const std::array<std::pair<const char*, std::vector<double>>, 6> lists = {
      {{"_norm", row_means(part.lane_norms)},
       {"_norm_deviation", part.norm_deviations},
       {"_variance", part.variances},
       {"_rank", part.ranks},
       {"_rank_90", part.ranks_90},
       {"_spectral_entropy", part.entropies}}};
  for (const auto& [name, list] : lists) {
    line[prefix + name + suffix] = list;
    line[prefix + name + suffix + "_mean"] = mean(list);
  }
}

// One prompt: its tokens fed behind the prefix that the model wants, and what its rows look like.
Result<Json> measure_prompt(Session& session, const nlohmann::json& prompt) {
  const Tokenizer& tokenizer = session.tokenizer();
  const std::vector<TokenId> ids =
      tokenizer.encode(prompt.at("text").get<std::string>(), {/*parse_special=*/false, /*add_bos=*/false});
  if (ids.size() < 2)
    return Status::error(fmt::format("prompt '{}': expected at least two tokens",
                                     printable(prompt.at("id").get<std::string>())));
  std::vector<TokenId> prefix;
  if (tokenizer.source().add_bos) prefix.push_back(tokenizer.source().bos);
  KvCache before = session.make_cache();
  if (!prefix.empty()) {
    const Feed feed{&before, prefix, Wanted::kNone};
    KVFOLD_RETURN_IF_ERROR(session.feed(std::span(&feed, 1), {}));
  }
  const ScoreJob job{&before, ids[0], std::span(ids).subspan(1), {}, {}, false};
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Score> scores, score(session, std::span(&job, 1)));
  KvCache cache = before.fork();
  const Feed feed{&cache, ids, Wanted::kNone};
  KVFOLD_RETURN_IF_ERROR(session.feed(std::span(&feed, 1), {}));

  Json line = {{"prompt", prompt.at("id")}};
  for (const char* key : {"kind", "template", "pair", "set", "text"}) line[key] = prompt.at(key);
  line["tokens"] = ids.size();
  double rank = 0;
  for (const TokenId id : ids) rank += std::log(id + 1.0) / static_cast<double>(ids.size());
  line["mean_log_token_rank"] = rank;
  line["nll_mean"] = -mean(scores[0].log_probabilities);
  line["nll_last"] = -scores[0].log_probabilities.back();
  const auto begin = static_cast<int>(prefix.size());
  for (const auto& [suffix, first] : {std::pair{"", begin}, std::pair{"_no_sink", begin + 1}}) {
    const CacheSignature signature = cache_signature(cache, first, cache.size());
    add_part(line, "key", suffix, signature.keys);
    add_part(line, "value", suffix, signature.values);
  }
  return line;
}

// Means by kind of the numbers that the question is about.
std::string summary(const std::vector<nlohmann::json>& lines) {
  const std::array columns = {"tokens",          "mean_log_token_rank", "nll_mean",      "key_norm_mean",
                              "value_norm_mean", "key_variance_mean",   "key_rank_mean", "value_rank_mean"};
  std::map<std::string, std::pair<int, std::array<double, columns.size()>>> kinds;
  for (const nlohmann::json& line : lines) {
    auto& [count, sums] = kinds[line.at("kind")];
    ++count;
    for (size_t i = 0; i < columns.size(); ++i) sums[i] += line.at(columns[i]).get<double>();
  }
  std::string out = fmt::format("{:<14} {:>7}", "kind", "prompts");
  for (const char* column : columns) out += fmt::format(" {:>{}}", column, std::string_view(column).size());
  out += "\n";
  for (const auto& [kind, sums] : kinds) {
    out += fmt::format("{:<14} {:>7}", one_line(kind), sums.first);
    for (size_t i = 0; i < columns.size(); ++i)
      out += fmt::format(" {:>{}.3f}", sums.second[i] / sums.first, std::string_view(columns[i]).size());
    out += "\n";
  }
  return out;
}

Status run(const DriverOptions& options) {
  const std::string path = options.prompts.empty() ? prompt_set_path("signatures") : options.prompts;
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  KVFOLD_ASSIGN_OR_RETURN(std::vector<nlohmann::json> prompts, read_lines(path));
  if (options.limit > 0 && prompts.size() > static_cast<size_t>(options.limit))
    prompts.resize(static_cast<size_t>(options.limit));
  std::set<std::string> ids;
  for (size_t i = 0; i < prompts.size(); ++i) {
    for (const char* key : {"id", "kind", "template", "pair", "set", "text"})
      if (!prompts[i].contains(key) || !prompts[i][key].is_string())
        return Status::error(fmt::format("{}:{}: {}: expected a string", path, i + 1, key));
    if (!ids.insert(prompts[i]["id"]).second)
      return Status::error(fmt::format("{}:{}: id: found '{}' a second time", path, i + 1,
                                       printable(prompts[i]["id"].get<std::string>())));
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, open_session(options));
  const Json what = {{"kvfold_trials", 1},
                     {"phase", "signatures"},
                     {"question", "Do cognitive modes produce measurably different KV-cache signatures?"},
                     {"prompts", path},
                     {"prompts_xxh3", fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()))},
                     {"trials", prompts.size()}};
  const Json description = describe_run(*session, options);
  KVFOLD_ASSIGN_OR_RETURN(RunFolder folder, RunFolder::open(options.runs, "signatures",
                                                            run_identity(description, what), options.fresh));
  Json manifest = make_manifest(what, description, folder);
  KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
  KVFOLD_ASSIGN_OR_RETURN(const std::set<std::string> done,
                          folder.open_records("signatures.jsonl", ids, [](const nlohmann::json& x) {
                            return RunFolder::Group{x.value("prompt", ""), 1};
                          }));
  Progress progress("signatures", prompts.size() - done.size());
  for (const nlohmann::json& prompt : prompts) {
    if (done.contains(prompt.at("id").get<std::string>())) continue;
    KVFOLD_ASSIGN_OR_RETURN(const Json line, measure_prompt(*session, prompt));
    KVFOLD_RETURN_IF_ERROR(weights_unchanged(*session));
    KVFOLD_RETURN_IF_ERROR(folder.append(std::span(&line, 1)));
    progress.step(prompt.at("id"));
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::string means,
                          make_of_lines(folder.path() + "/signatures.jsonl", summary));
  manifest["finished"] = utc_now();
  manifest["complete"] = true;
  KVFOLD_RETURN_IF_ERROR(folder.write_manifest(manifest));
  fmt::print("{}\nMeans over prompts and layers; effect sizes with intervals are the report's.\n{}\n", means,
             folder.path() + "/signatures.jsonl");
  return {};
}

}  // namespace

int run_signatures(int argc, char** argv) {
  DriverOptions options;
  CLI::App app("Phase 1.5: cache signatures of true, false and invented statements");
  add_options(app, options);
  return run_program(argc, argv, app, options, [&] { return run(options); });
}

}  // namespace kvfold
