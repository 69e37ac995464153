// kvfold: look into models and KV caches from the command line.
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>

#include "experiments/cli/cache_files.h"
#include "experiments/cli/common.h"
#include "experiments/last_words.h"
#include "experiments/say.h"

namespace kvfold::cli {
namespace {

struct Command {
  CLI::App* app;
  Action action;
};

int run(int argc, char** argv) {
  CLI::App app("kvfold: a transformer runtime whose KV cache is an object", "kvfold");
  app.require_subcommand(1);
  std::vector<Command> commands;
  const auto add = [&](CLI::App& parent, const char* name, const char* what, Action (*declare)(CLI::App&)) {
    CLI::App* command = parent.add_subcommand(name, what);
    commands.push_back({command, declare(*command)});
  };
  add(app, "info", "what a model file holds", add_info);
  add(app, "tokenize", "text to token ids", add_tokenize);
  add(app, "logits", "logits of every token of a text, as a .npy file", add_logits);
  add(app, "generate", "continue a prompt", add_generate);
  add(app, "perplexity", "mean NLL and perplexity of a text", add_perplexity);
  add(app, "bench", "how fast a model runs here", add_bench);
  add(app, "inspect", "what is in a cache, as tables or as a page", add_inspect);
  add(app, "attention", "who looks at which rows of a cache, as a .npy file", add_attention);
  add(app, "convert", "any model to a GGUF file", add_convert);
  add(app, "make-random", "a GGUF file of a known model's shape with random weights", add_make_random);
  CLI::App* cache = app.add_subcommand("cache", "KV caches: made, run, changed, looked at");
  cache->require_subcommand(1);
  add(*cache, "save", "feed a text and save its KV cache", add_cache_save);
  add(*cache, "run", "continue a text with the rows of a saved cache put in", add_cache_run);
  for (const auto& group :
       {row_commands(), vector_commands(), look_commands(), exchange_commands(), project_commands()})
    for (const CacheCommand& command : group) add(*cache, command.name, command.what, command.declare);
  // CLI11 would only say that a subcommand is required.
  const auto named = [&](const CLI::App* command) { return command->check_name(argv[1]); };
  const std::vector<CLI::App*> known = app.get_subcommands([](CLI::App*) { return true; });
  if (argc > 1 && argv[1][0] != '-' && std::none_of(known.begin(), known.end(), named))
    return fail(fmt::format("unknown command '{}': see kvfold --help", printable(argv[1])));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(error.what(), kMostParserLine);
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const Status status = command.action();
    if (!status.ok()) return fail(status.message());
    if (std::fflush(stdout) != 0) return fail("cannot write to standard output");
  }
  return 0;
}

}  // namespace
}  // namespace kvfold::cli

int main(int argc, char** argv) {
  kvfold::prepare_last_words();
  try {
    return kvfold::cli::run(argc, argv);
  } catch (const std::bad_alloc&) {
    return kvfold::fail_for_memory();
  } catch (const std::exception& error) {
    return kvfold::fail(error.what());
  }
}
