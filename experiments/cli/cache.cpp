// cache save, cache run: a cache to disk, and back into another text.
#include <fmt/core.h>

#include <array>
#include <charconv>
#include <memory>
#include <optional>

#include "engine/file.h"
#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "engine/printable.h"
#include "experiments/cli/cache_files.h"
#include "experiments/cli/npy.h"

namespace kvfold::cli {
namespace {

struct SaveOptions {
  ModelOptions model;
  TextOptions text;
  std::string out;
  bool json = false;
};

Status save(const SaveOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  KvCache cache = session->make_cache();
  const Feed feed{&cache, ids, Wanted::kNone};
  KVFOLD_RETURN_IF_ERROR(session->feed(std::span(&feed, 1), {}));
  KVFOLD_RETURN_IF_ERROR(save_cache(cache, cache_model_info(session->model().source()), options.out));
  if (options.json) {
    print_json({{"out", options.out}, {"rows", cache.size()}, {"ids", ids}});
  } else {
    fmt::print("{}: {} rows\n", options.out, cache.size());
  }
  return {};
}

struct RunOptions {
  ModelOptions model;
  TextOptions text;
  std::string cache;
  int count = 40;
  std::string insert = "start";
  std::string positions = "follow";
  SliceOptions slice;
  std::string logits;
  bool json = false;
};

// The logits after the text's last token, [1, vocab_size], as a .npy file.
Status write_logits(const std::string& path, const std::vector<float>& logits) {
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  const std::array<size_t, 2> shape = {1, logits.size()};
  KVFOLD_RETURN_IF_ERROR(file.write(npy_header(shape)));
  KVFOLD_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(logits))));
  return file.commit();
}

// How many of the target's tokens are fed before the source's rows are inserted.
Result<int> insertion_slot(const std::string& where, int tokens) {
  if (where == "start") return 0;
  if (where == "middle") return tokens / 2;
  if (where == "end") return tokens - 1;
  int slot = -1;
  const auto [end, error] = std::from_chars(where.data(), where.data() + where.size(), slot);
  if (error != std::errc() || end != where.data() + where.size() || slot < 0 || slot >= tokens)
    return Status::error(fmt::format("--insert {}: expected start, middle, end or a slot in 0-{}",
                                     printable(where), tokens - 1));
  return slot;
}

Status run(const RunOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  KVFOLD_ASSIGN_OR_RETURN(const InsertPositions positions, InsertPositions::parse(options.positions));
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  KVFOLD_ASSIGN_OR_RETURN(const int slot, insertion_slot(options.insert, static_cast<int>(ids.size())));
  const Model& model = session->model();
  const CacheModelInfo info = cache_model_info(model.source());
  KVFOLD_ASSIGN_OR_RETURN(const KvCache source,
                          load_cache(options.cache, info, model.cache_shape(), session->pool()));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, options.slice.take(source, info, options.cache));

  KvCache cache = session->make_cache();
  const Feed before{&cache, std::span(ids).first(static_cast<size_t>(slot)), Wanted::kNone};
  KVFOLD_RETURN_IF_ERROR(session->feed(std::span(&before, 1), {}));
  KVFOLD_ASSIGN_OR_RETURN(cache, insert(cache, slice, cache.size(), positions));
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<float> logits,
                          session->feed(cache, std::span(ids).subspan(static_cast<size_t>(slot))));
  if (!options.logits.empty()) KVFOLD_RETURN_IF_ERROR(write_logits(options.logits, logits));
  const std::vector<int32_t> row_positions = cache.rows().positions;
  Sampler greedy({});
  KVFOLD_ASSIGN_OR_RETURN(const Continuation out,
                          continue_from(*session, cache, greedy.sample(logits), options.count, greedy));
  if (options.json) {
    print_json({{"ids", out.ids},
                {"text", out.text},
                {"stop", out.ended ? "end-token" : "length"},
                {"target_ids", ids},
                {"inserted_at", slot},
                {"inserted_rows", slice.size()},
                {"positions", row_positions}});
  } else {
    fmt::print("{}\n", out.text);
  }
  return {};
}

}  // namespace

Action add_cache_save(CLI::App& app) {
  auto options = std::make_shared<SaveOptions>();
  options->model.declare(app);
  options->text.declare(app);
  app.add_option("--out", options->out, "the cache file to write (safetensors)")->required();
  app.add_flag("--json", options->json, "print file, rows and ids as JSON");
  return [options] { return save(*options); };
}

Action add_cache_run(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  options->model.declare(app);
  app.add_option("CACHE", options->cache, "a file of 'kvfold cache save'")->required();
  options->text.declare(app);
  app.add_option("-n", options->count, "most tokens to generate, greedily")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--insert", options->insert,
                 "where the saved rows go: start, middle, end (the text's last token is fed behind them), or "
                 "the number "
                 "of the text's tokens fed before them")
      ->capture_default_str();
  app.add_option("--positions", options->positions,
                 "the positions they take: follow, keep, overlap, gap:N or from:N")
      ->capture_default_str();
  options->slice.declare(app, "the saved rows");
  app.add_option("--logits", options->logits,
                 "a .npy file for the logits after the text's last token, f32 [1, vocab_size]");
  app.add_flag("--json", options->json, "print ids, text, stop and positions as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvfold::cli
