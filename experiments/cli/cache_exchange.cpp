// cache export, import: caches as other tools hold them.
#include <fmt/core.h>

#include "engine/kv/exchange.h"
#include "experiments/cli/cache_files.h"
#include "loaders/model_loader.h"

namespace kvfold::cli {
namespace {

Action declare_export(CLI::App& app) {
  struct Options {
    std::string in, out;
    bool rotated = false;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("IN", options->in, "a cache file")->required();
  app.add_option("--out", options->out, "the safetensors file to write, in f32")->required();
  app.add_flag("--rotated", options->rotated,
               "keys after RoPE, as frameworks hold them (experiments/python/kvfold_cache.py opens it)");
  app.add_flag("--json", options->json, "print out, rows and next_position as JSON");
  return [options]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(const OpenCaches in, open_caches({options->in}));
    const KvCache& cache = in.caches[0];
    KVFOLD_RETURN_IF_ERROR(export_cache(cache, in.model, options->rotated, options->out));
    if (options->json) {
      print_json({{"out", options->out}, {"rows", cache.size()}, {"next_position", cache.next_position()}});
    } else {
      fmt::print("{}: {} rows, next position {}\n", options->out, cache.size(), cache.next_position());
    }
    return {};
  };
}

struct ImportOptions {
  std::string in, out, model, like, cache_type;
  bool json = false;
};

// Whose cache it is to be: a model's, or that of another cache file's model.
Result<CacheFileInfo> imported_as(const ImportOptions& options) {
  CacheFileInfo info;
  if (!options.like.empty()) {
    KVFOLD_ASSIGN_OR_RETURN(info, read_cache_info(options.like));
  } else {
    KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(options.model));
    KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_model_source(path));
    info.model = cache_model_info(source);
    info.shape = {source.config.layers, source.config.kv_heads, source.config.head_dim};
  }
  if (options.cache_type.empty()) return info;
  KVFOLD_ASSIGN_OR_RETURN(info.type, parse_cache_type(options.cache_type));
  return info;
}

Status run_import(const ImportOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const CacheFileInfo as, imported_as(options));
  constexpr size_t kBudget = size_t{16} << 30;  // address space until it is used
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<PagePool> pool,
                          PagePool::create(as.type, as.shape.head_dim, kBudget));
  KVFOLD_ASSIGN_OR_RETURN(const KvCache cache, import_cache(options.in, as.model, as.shape, pool));
  return write_cache(cache, as.model, options.out, options.json);
}

Action declare_import(CLI::App& app) {
  auto options = std::make_shared<ImportOptions>();
  app.add_option("IN", options->in, "a file of 'kvfold cache export' or of kvfold_cache.py")->required();
  CLI::Option_group* group = app.add_option_group("whose", "whose cache it is");
  group->add_option("--model", options->model, "the model, as other commands take it");
  group->add_option("--like", options->like, "a cache file of that model");
  group->require_option(1);
  app.add_option("--cache-type", options->cache_type,
                 "type of KV pages: f16, f32 or q8 (default: --like's, or f16)")
      ->check(CLI::IsMember({"f16", "f32", "q8"}));
  app.add_option("--out", options->out, "the cache file to write")->required();
  app.add_flag("--json", options->json, "print out, rows, next_position and rows_copied as JSON");
  return [options] { return run_import(*options); };
}

}  // namespace

std::vector<CacheCommand> exchange_commands() {
  return {{"export", "a cache as other tools hold it", declare_export},
          {"import", "a cache that another tool made", declare_import}};
}

}  // namespace kvfold::cli
