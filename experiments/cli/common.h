// What the subcommands of kvfold share: option groups, reading text, reporting errors.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "loaders/open.h"

namespace kvfold::cli {

// A subcommand: declares its options on `app` and returns what runs when it was chosen.
using Action = std::function<Status()>;
Action add_info(CLI::App& app);
Action add_tokenize(CLI::App& app);
Action add_logits(CLI::App& app);
Action add_generate(CLI::App& app);
Action add_perplexity(CLI::App& app);
Action add_bench(CLI::App& app);
Action add_attention(CLI::App& app);
Action add_convert(CLI::App& app);
Action add_make_random(CLI::App& app);
Action add_inspect(CLI::App& app);
Action add_cache_save(CLI::App& app);
Action add_cache_run(CLI::App& app);

// MODEL, --backend, --device, --prefill, --threads, --chunk, --exact, --cache-type.
struct ModelOptions {
  std::string model;
  int threads = 0;
  int chunk = 512;
  bool exact = false;
  std::string cache_type = "f16";
  std::string backend = "auto";
  int device = -1;
  std::string prefill = "tiles";
  std::string quantize = "none";

  // Without --cache-type where a file says what the pages are.
  void declare(CLI::App& app, bool with_cache_type = true);
  Result<std::unique_ptr<Session>> open() const;
};

// --text or --text-file; one of them, checked by the parser.
struct TextOptions {
  std::string text;
  std::string file;

  void declare(CLI::App& app);
  Result<std::string> read() const;
};

// Accepts numbers within [low, high]; unlike CLI::Range it refuses NaN.
CLI::Validator number_in(double low, double high);

// The text's tokens. Errors: there are none.
Result<std::vector<TokenId>> encode(const Session& session, const std::string& text);

// One line of JSON on stdout. Bytes that are not UTF-8 come out as U+FFFD.
void print_json(const nlohmann::ordered_json& json);

// Greedy or sampled continuation that begins with `next`, until an end token or `count` tokens. `watch` sees
// each token as it comes.
struct Continuation {
  std::vector<TokenId> ids;
  std::string text;
  bool ended = false;  // by an end token, which is not among the ids
};
Result<Continuation> continue_from(Session& session, KvCache& cache, TokenId next, int count,
                                   Sampler& sampler,
                                   const std::function<void(const std::string&)>& watch = {});

// "f16", "f32", "q8".
Result<CacheType> parse_cache_type(const std::string& text);

}  // namespace kvfold::cli
