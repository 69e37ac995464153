// tokenize, generate, perplexity.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "engine/file.h"
#include "engine/printable.h"
#include "engine/strict_json.h"
#include "engine/tokenizer/chat.h"
#include "experiments/cli/common.h"
#include "loaders/model_loader.h"

namespace kvfold::cli {
namespace {

struct GenerateOptions {
  ModelOptions model;
  std::string prompt;
  int count = 128;
  bool chat = false;
  bool json = false;
  SamplerOptions sampler;
};

Status generate(const GenerateOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  std::string text = options.prompt;
  if (options.chat) {
    const Result<ChatTemplate> chat = ChatTemplate::from(session->tokenizer().source());
    if (!chat.ok()) return chat.status().with_prefix(options.model.model + ": ");
    const ChatMessage message{"user", options.prompt};
    KVFOLD_ASSIGN_OR_RETURN(text, chat->render(std::span(&message, 1), true));
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  KvCache cache = session->make_cache();
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  Sampler sampler(options.sampler);
  KVFOLD_ASSIGN_OR_RETURN(const TokenId first, session->feed(cache, ids, sampler));
  const auto prefilled = Clock::now();
  const auto show = [&](const std::string& piece) {
    if (options.json) return;
    fmt::print("{}", piece);
    std::fflush(stdout);
  };
  KVFOLD_ASSIGN_OR_RETURN(const Continuation out,
                          continue_from(*session, cache, first, options.count, sampler, show));
  const auto end = Clock::now();
  const auto rate = [](size_t tokens, Clock::duration time) {
    return static_cast<double>(tokens) / std::chrono::duration<double>(time).count();
  };
  // The first token comes from the prompt's own logits, so one token fewer was fed.
  const double decode_rate = out.ids.size() > 1 ? rate(out.ids.size() - 1, end - prefilled) : 0;
  if (options.json) {
    print_json({{"prompt_ids", ids},
                {"ids", out.ids},
                {"text", out.text},
                {"stop", out.ended ? "end-token" : "length"},
                {"prefill_tokens_per_second", rate(ids.size(), prefilled - begin)},
                {"decode_tokens_per_second", decode_rate}});
    return {};
  }
  fmt::print("\n");
  if (isatty(STDERR_FILENO) != 0)
    fmt::print(stderr, "{} tokens in, {:.0f}/s; {} out, {:.1f}/s\n", ids.size(),
               rate(ids.size(), prefilled - begin), out.ids.size(), decode_rate);
  return {};
}

struct PerplexityOptions {
  ModelOptions model;
  TextOptions text;
  bool json = false;
};

Status perplexity(const PerplexityOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  if (ids.size() < 2) return Status::error("the text has one token; perplexity needs two or more");
  KvCache cache = session->make_cache();
  const bool show = isatty(STDERR_FILENO) != 0;
  double nll = 0;
  const Feed feed{&cache, ids, Wanted::kAll};
  KVFOLD_RETURN_IF_ERROR(
      session->feed(std::span(&feed, 1), [&](int, int token, std::span<const float> logits) {
        const size_t next = static_cast<size_t>(token) + 1;
        if (next < ids.size()) nll -= log_probability(logits, ids[next]);
        if (show && (next % 16 == 0 || next == ids.size()))
          fmt::print(stderr, "\r{} of {} tokens", next, ids.size());
      }));
  if (show) fmt::print(stderr, "\n");
  const auto scored = static_cast<double>(ids.size() - 1);
  nll /= scored;
  if (options.json) {
    print_json({{"nll", nll}, {"perplexity", std::exp(nll)}, {"tokens", ids.size() - 1}});
  } else {
    fmt::print("mean NLL {:.4f} nats, perplexity {:.3f}, over {} next tokens\n", nll, std::exp(nll),
               ids.size() - 1);
  }
  return {};
}

struct TokenizeOptions {
  std::string model;
  TextOptions text;
  std::string lines;
  bool json = false;
  bool no_special = false;
  bool no_bos = false;
};

// Each line of a file is one text.
Status tokenize_lines(const TokenizeOptions& options, const Tokenizer& tokenizer,
                      const EncodeOptions& encode) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string all, read_text_file(options.lines));
  size_t number = 0;
  for (size_t begin = 0; begin < all.size(); ++number) {
    const size_t end = std::min(all.find('\n', begin), all.size());
    const std::string line = all.substr(begin, end - begin);
    begin = end + 1;
    const Result<nlohmann::json> text = parse_json(line);
    if (!text.ok() || !text->is_string())
      return Status::error(fmt::format("{}: line {}: found '{}', expected a JSON string", options.lines,
                                       number + 1, printable(line)));
    fmt::print("{}\n", nlohmann::json(tokenizer.encode(text->get_ref<const std::string&>(), encode)).dump());
  }
  return {};
}

Status tokenize(const TokenizeOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(options.model));
  KVFOLD_ASSIGN_OR_RETURN(auto vocabulary, load_vocabulary(path));
  const auto tokenizer = Tokenizer::create(std::move(vocabulary.source), std::move(vocabulary.storage));
  if (!tokenizer.ok()) return tokenizer.status().with_prefix(path + ": ");
  const EncodeOptions encode{!options.no_special, !options.no_bos};
  if (!options.lines.empty()) return tokenize_lines(options, **tokenizer, encode);
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  const std::vector<TokenId> ids = (*tokenizer)->encode(text, encode);
  if (options.json) {
    print_json({{"ids", ids}});
    return {};
  }
  for (const TokenId id : ids) {
    const nlohmann::json piece = (*tokenizer)->token_bytes(id);
    fmt::print("{:>8}  {}\n", id, piece.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  return {};
}

}  // namespace

Action add_tokenize(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  app.add_option("MODEL", options->model,
                 "a GGUF file, a checkpoint's folder, a tokenizer.json or tokenizer.model, or a name of "
                 "weights/models.json")
      ->required();
  CLI::Option_group* group = app.add_option_group("text", "the text");
  group->add_option("--text", options->text.text, "the text itself");
  group->add_option("--text-file", options->text.file, "a file with the text");
  group->add_option("--lines", options->lines,
                    "a file of many texts: a JSON string on each line; prints a JSON list of ids for each");
  group->require_option(1);
  app.add_flag("--no-special", options->no_special, "take the text of control tokens as plain text");
  app.add_flag("--no-bos", options->no_bos, "add no token that begins or ends a text");
  app.add_flag("--json", options->json, "print {\"ids\": [...]}");
  return [options] { return tokenize(*options); };
}

Action add_generate(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  options->model.declare(app);
  app.add_option("--prompt", options->prompt, "the text to continue")->required();
  app.add_option("-n", options->count, "most tokens to generate")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_flag("--chat", options->chat,
               "put the prompt into the model's chat template as the user's message");
  SamplerOptions& sampler = options->sampler;
  app.add_option("--temp", sampler.temperature, "temperature; 0 is greedy")->check(number_in(0, 100));
  app.add_option("--seed", sampler.seed, "seed of the sampler");
  app.add_option("--top-k", sampler.top_k, "sample among the k likeliest; 0: all")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("--top-p", sampler.top_p, "sample among the likeliest that reach p together")
      ->check(number_in(1e-6, 1));
  app.add_flag("--json", options->json, "print ids, text and rates as JSON");
  return [options] { return generate(*options); };
}

Action add_perplexity(CLI::App& app) {
  auto options = std::make_shared<PerplexityOptions>();
  options->model.declare(app);
  options->text.declare(app);
  app.add_flag("--json", options->json, "print nll (mean, nats), perplexity and tokens (next tokens scored)");
  return [options] { return perplexity(*options); };
}

}  // namespace kvfold::cli
