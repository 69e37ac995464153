// logits: the logits of every token of a text, as a NumPy file.
#include <fmt/core.h>

#include <array>
#include <memory>

#include "engine/file.h"
#include "experiments/cli/common.h"
#include "experiments/cli/npy.h"

namespace kvfold::cli {
namespace {

struct Options {
  ModelOptions model;
  TextOptions text;
  std::string out;
  bool json = false;
};

Status logits(const Options& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  const auto vocabulary = static_cast<size_t>(session->model().config().vocab_size);
  const std::array shape = {ids.size(), vocabulary};
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(options.out));
  KVFOLD_RETURN_IF_ERROR(file.write(npy_header(shape)));
  KvCache cache = session->make_cache();
  Status written;
  const Feed feed{&cache, ids, Wanted::kAll};
  KVFOLD_RETURN_IF_ERROR(session->feed(std::span(&feed, 1), [&](int, int, std::span<const float> row) {
    if (written.ok()) written = file.write(std::as_bytes(row));
  }));
  KVFOLD_RETURN_IF_ERROR(written);
  KVFOLD_RETURN_IF_ERROR(file.commit());
  if (options.json) {
    print_json({{"ids", ids}, {"shape", shape}, {"out", options.out}});
  } else {
    fmt::print("{}: [{} tokens, {}] f32\n", options.out, ids.size(), vocabulary);
  }
  return {};
}

}  // namespace

Action add_logits(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->model.declare(app);
  options->text.declare(app);
  app.add_option("--out", options->out, "the .npy file to write: f32 [tokens, vocabulary]")->required();
  app.add_flag("--json", options->json, "print ids, shape and file as JSON");
  return [options] { return logits(*options); };
}

}  // namespace kvfold::cli
