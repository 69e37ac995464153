// cache project: rows of one model's cache become rows of another's.
#include <fmt/core.h>

#include <algorithm>

#include "engine/kv/alignment.h"
#include "engine/kv/projector.h"
#include "engine/printable.h"
#include "experiments/cli/cache_files.h"
#include "loaders/model_loader.h"

namespace kvfold::cli {
namespace {

struct Options {
  std::string in, projector, source, target, out;
  std::string cache_type;
  SliceOptions slice;
  bool json = false;
};

std::string shape_text(const CacheShape& shape) {
  return fmt::format("{} layers x {} KV heads x {}", shape.layers, shape.kv_heads, shape.head_dim);
}

// Errors: `model` is not the one that a projector is of; both fingerprints and shapes are named.
Status check_model(const std::string& what, const std::string& fingerprint, const CacheShape& shape,
                   const std::string& projector, const char* role, const ProjectorModel& wanted) {
  if (fingerprint == wanted.fingerprint && shape == wanted.shape) return {};
  return Status::error(fmt::format("{}: of the model {} ({}), but the {} of the projector {} is {} ({}, {})",
                                   what, printable(fingerprint), shape_text(shape), role, projector,
                                   printable(wanted.fingerprint), printable(wanted.name),
                                   shape_text(wanted.shape)));
}

struct Opened {
  CacheModelInfo model;
  CacheShape shape;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// A model's header and tokenizer, without its weights.
Result<Opened> open_model(const std::string& model) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(model));
  KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_model_source(path));
  Opened out;
  out.model = cache_model_info(source);
  out.shape = {source.config.layers, source.config.kv_heads, source.config.head_dim};
  const auto tokenizer = Tokenizer::create(source.vocabulary, source.storage);
  if (!tokenizer.ok()) return tokenizer.status().with_prefix(path + ": ");
  out.tokenizer = *tokenizer;
  return out;
}

// The model that was named, or the fetched one of that fingerprint.
Result<Opened> open_model(const std::string& named, const char* option, const ProjectorModel& wanted) {
  std::string model = named;
  if (model.empty()) {
    KVFOLD_ASSIGN_OR_RETURN(model, find_fetched_model(wanted.fingerprint));
  }
  if (model.empty())
    return Status::error(fmt::format("{}: no fetched model has the fingerprint {} ({}); name its file",
                                     option, printable(wanted.fingerprint), printable(wanted.name)));
  return open_model(model);
}

// A cache file may say that its rows are of any tokens.
Status check_tokens(const KvCache& cache, const Tokenizer& tokenizer, const std::string& path) {
  const std::vector<TokenId>& tokens = cache.rows().tokens;
  const auto bad = std::find_if(tokens.begin(), tokens.end(),
                                [&](TokenId id) { return id < 0 || id >= tokenizer.size(); });
  if (bad == tokens.end()) return {};
  return Status::error(fmt::format("{}: row {}: token id {} is outside the vocabulary, 0-{}", path,
                                   bad - tokens.begin(), *bad, tokenizer.size() - 1));
}

// Errors: a lane that lacks a row: a projector reads all of them at once.
Status check_whole(const KvCache& cache, const std::string& path) {
  for (int lane = 0; lane < cache.shape().lanes(); ++lane)
    if (const int held = cache.lanes().table(Part::kKey, lane).rows(); held != cache.size())
      return Status::error(
          fmt::format("{}: layer {} head {} holds {} of {} rows; a projector reads all lanes", path,
                      lane / cache.shape().kv_heads, lane % cache.shape().kv_heads, held, cache.size()));
  return {};
}

// A cache's tokens beside those of the target for the same text.
Result<AlignedTokens> align_cache(const KvCache& cache, const Opened& source, const Opened& target) {
  std::span<const TokenId> spoken = cache.rows().tokens;
  const VocabularySource& vocabulary = source.tokenizer->source();
  if (vocabulary.add_bos && !spoken.empty() && spoken[0] == vocabulary.bos) spoken = spoken.subspan(1);
  const std::vector<TokenId> ids = target.tokenizer->encode(source.tokenizer->decode(spoken));
  return align(*source.tokenizer, cache.rows().tokens, *target.tokenizer, ids);
}

// The cache that the projector makes of the input, whole.
Result<KvCache> project_file(const Options& options, const OpenCaches& in, const Projector& projector,
                             const Opened& source, const Opened& target) {
  const KvCache& cache = in.caches[0];
  KVFOLD_RETURN_IF_ERROR(check_tokens(cache, *source.tokenizer, options.in));
  const Result<AlignedTokens> aligned = align_cache(cache, source, target);
  if (!aligned.ok()) return aligned.status().with_prefix(options.in + ": ");
  KVFOLD_RETURN_IF_ERROR(check_whole(cache, options.in));
  constexpr size_t kBudget = size_t{16} << 30;  // address space until it is used
  CacheType type = cache.type();
  if (!options.cache_type.empty()) {
    KVFOLD_ASSIGN_OR_RETURN(type, parse_cache_type(options.cache_type));
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<PagePool> pool,
                          PagePool::create(type, target.shape.head_dim, kBudget));
  ThreadPool threads(ThreadPool::available());
  Result<KvCache> made = project(projector, cache, aligned.value(), pool, options.in, threads);
  if (!made.ok()) return made.status().with_prefix(options.projector + ": ");
  return made;
}

Status run(const Options& options) {
  KVFOLD_ASSIGN_OR_RETURN(const OpenCaches in, open_caches({options.in}));
  KVFOLD_ASSIGN_OR_RETURN(ProjectorData data, load_projector(options.projector));
  Result<std::unique_ptr<Projector>> projector = make_projector(std::move(data));
  if (!projector.ok()) return projector.status().with_prefix(options.projector + ": ");
  const ProjectorData& of = projector.value()->data();
  KVFOLD_RETURN_IF_ERROR(check_model(options.in, in.model.fingerprint, in.caches[0].shape(),
                                     options.projector, "source", of.source));
  KVFOLD_ASSIGN_OR_RETURN(const Opened source, open_model(options.source, "--source", of.source));
  KVFOLD_RETURN_IF_ERROR(check_model("--source", source.model.fingerprint, source.shape, options.projector,
                                     "source", of.source));
  KVFOLD_ASSIGN_OR_RETURN(const Opened target, open_model(options.target, "--target", of.target));
  KVFOLD_RETURN_IF_ERROR(check_model("--target", target.model.fingerprint, target.shape, options.projector,
                                     "target", of.target));
  KVFOLD_ASSIGN_OR_RETURN(const KvCache whole, project_file(options, in, *projector.value(), source, target));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice part, options.slice.take(whole, target.model, options.in));
  KVFOLD_ASSIGN_OR_RETURN(const KvCache cache, to_cache(part));
  return write_cache(cache, target.model, options.out, options.json);
}

Action declare(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("IN", options->in, "a cache file of the projector's source")->required();
  app.add_option("PROJECTOR", options->projector,
                 "a projector file (make fit-projector, or weights/projectors)")
      ->required();
  app.add_option("--source", options->source,
                 "the source model, whose tokenizer says what the rows say (default: the fetched one)");
  app.add_option("--target", options->target, "the target model (default: the fetched one)");
  options->slice.declare(app, "the projected rows");
  app.add_option("--cache-type", options->cache_type, "type of KV pages: f16, f32 or q8 (default: IN's)")
      ->check(CLI::IsMember({"f16", "f32", "q8"}));
  app.add_option("--out", options->out, "the cache file to write")->required();
  app.add_flag("--json", options->json, "print out, rows, next_position and rows_copied as JSON");
  return [options] { return run(*options); };
}

}  // namespace

std::vector<CacheCommand> project_commands() {
  return {{"project", "a cache for another model, made by a projector", declare}};
}

}  // namespace kvfold::cli
