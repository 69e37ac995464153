// cache mix, add, scale, match-norm, noise, recompute: vectors made from those that are there.
#include <fmt/core.h>

#include <cstring>

#include "engine/file.h"
#include "engine/safetensors.h"
#include "experiments/cli/cache_files.h"

namespace kvfold::cli {
namespace {

constexpr CacheInput kIn = {"IN", "a cache file"};
constexpr double kMost = 1e30;

std::shared_ptr<std::string> declare_select(CLI::App& app) {
  auto select = std::make_shared<std::string>();
  app.add_option("--select", *select,
                 "which part: \"layers=0-9,20 heads=* parts=k rows=3-12\"; what is not named is all of it");
  return select;
}

Action declare_mix(CLI::App& app) {
  auto alpha = std::make_shared<double>(0);
  app.add_option("--alpha", *alpha, "(1 - alpha) A + alpha B, row by row")
      ->required()
      ->check(number_in(-kMost, kMost));
  auto select = declare_select(app);
  return cache_operation(app, {{"A", "a cache file"}, {"B", "a cache file of as many rows"}},
                         [alpha, select](const OpenCaches& in) -> Result<KvCache> {
                           KVFOLD_ASSIGN_OR_RETURN(const Selection s, select_in(in, 0, *select));
                           return mix(in.caches[0], in.caches[1], *alpha, s);
                         });
}

// A tensor of a steering file as f32 values; none where it is missing. add() checks how many there are.
Result<std::vector<float>> read_vector(const SafetensorsFile& file, const std::string& path,
                                       const char* name) {
  const auto at = file.tensors.find(name);
  if (at == file.tensors.end()) return std::vector<float>{};
  if (at->second.dtype != "F32")
    return Status::error(
        fmt::format("{}: tensor '{}': found {}, expected F32", path, name, at->second.dtype));
  std::vector<float> out(at->second.bytes.size() / sizeof(float));
  std::memcpy(out.data(), at->second.bytes.data(), at->second.bytes.size());
  return out;
}

Result<SteeringVectors> read_steering(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  KVFOLD_ASSIGN_OR_RETURN(const SafetensorsFile file, parse_safetensors(map->bytes(), path));
  SteeringVectors out;
  KVFOLD_ASSIGN_OR_RETURN(out.keys, read_vector(file, path, "k"));
  KVFOLD_ASSIGN_OR_RETURN(out.values, read_vector(file, path, "v"));
  if (out.keys.empty() && out.values.empty())
    return Status::error(path + ": found neither a tensor 'k' nor one 'v'");
  return out;
}

Action declare_add(CLI::App& app) {
  struct Options {
    std::string vectors;
    double coefficient = 1;
  };
  auto options = std::make_shared<Options>();
  app.add_option(
         "--vectors", options->vectors,
         "a safetensors file with F32 tensors k, v or both: [head_dim], or [layers, kv_heads, head_dim]; "
         "those of k are added before RoPE")
      ->required();
  app.add_option("--coefficient", options->coefficient, "what they are multiplied by first")
      ->check(number_in(-kMost, kMost))
      ->capture_default_str();
  auto select = declare_select(app);
  return cache_operation(app, {kIn}, [options, select](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const Selection s, select_in(in, 0, *select));
    KVFOLD_ASSIGN_OR_RETURN(const SteeringVectors vectors, read_steering(options->vectors));
    Result<KvCache> out = add(in.caches[0], vectors, options->coefficient, s);
    if (!out.ok()) return out.status().with_prefix(options->vectors + ": ");
    return out;
  });
}

Action declare_scale(CLI::App& app) {
  auto factor = std::make_shared<double>(1);
  app.add_option("--factor", *factor, "what vectors are multiplied by")
      ->required()
      ->check(number_in(-kMost, kMost));
  auto select = declare_select(app);
  return cache_operation(app, {kIn}, [factor, select](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const Selection s, select_in(in, 0, *select));
    return scale(in.caches[0], *factor, s);
  });
}

Action declare_match_norm(CLI::App& app) {
  auto by = std::make_shared<std::string>("row");
  app.add_option("--by", *by, "row: the norm of TO's row at the same slot; lane: the mean norm of TO's lane")
      ->check(CLI::IsMember({"row", "lane"}))
      ->capture_default_str();
  auto select = declare_select(app);
  return cache_operation(app, {kIn, {"TO", "the cache file whose norms are taken"}},
                         [by, select](const OpenCaches& in) -> Result<KvCache> {
                           KVFOLD_ASSIGN_OR_RETURN(const Selection s, select_in(in, 0, *select));
                           return match_norm(in.caches[0], in.caches[1],
                                             *by == "row" ? NormTarget::kRow : NormTarget::kLaneMean, s);
                         });
}

Action declare_noise(CLI::App& app) {
  struct Options {
    std::string kind = "matched";
    uint64_t seed = 0;
  };
  auto options = std::make_shared<Options>();
  app.add_option(
         "--kind", options->kind,
         "unit: N(0, 1); matched: each lane's mean and deviation, each row's norm; channel: each lane's mean "
         "and covariance; permuted: the rows in another order; zero; mean: each lane's mean row")
      ->capture_default_str();
  app.add_option("--seed", options->seed, "the same seed gives the same bits")->capture_default_str();
  auto select = declare_select(app);
  return cache_operation(app, {kIn}, [options, select](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const NoiseKind kind, parse_noise_kind(options->kind));
    KVFOLD_ASSIGN_OR_RETURN(const Selection s, select_in(in, 0, *select));
    return noise(in.caches[0], s, kind, options->seed);
  });
}

struct RecomputeOptions {
  ModelOptions model;
  std::string in, out, select;
  bool json = false;
};

Status run_recompute(RecomputeOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const CacheFileInfo info, read_cache_info(options.in));
  options.model.cache_type = cache_type_name(info.type);
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  const Model& model = session->model();
  const CacheModelInfo of = cache_model_info(model.source());
  KVFOLD_ASSIGN_OR_RETURN(const KvCache cache,
                          load_cache(options.in, of, model.cache_shape(), session->pool()));
  const Result<Selection> selection = Selection::parse(options.select, cache.shape(), cache.size());
  if (!selection.ok()) return selection.status().with_prefix(options.in + ": ");
  KVFOLD_ASSIGN_OR_RETURN(const KvCache made, session->recompute(cache, *selection));
  return write_cache(made, of, options.out, options.json);
}

Action declare_recompute(CLI::App& app) {
  auto options = std::make_shared<RecomputeOptions>();
  options->model.declare(app, /*with_cache_type=*/false);
  app.add_option("IN", options->in, "a cache file of that model")->required();
  app.add_option("--out", options->out, "the cache file to write")->required();
  app.add_option(
      "--select", options->select,
      "which vectors are made again, by running their rows' tokens through the model where they stand: "
      "\"layers=0-9,20 heads=* parts=k rows=3-12\"");
  app.add_flag("--json", options->json, "print out, rows, next_position and rows_copied as JSON");
  return [options] { return run_recompute(*options); };
}

}  // namespace

std::vector<CacheCommand> vector_commands() {
  return {{"mix", "two caches interpolated", declare_mix},
          {"add", "vectors added to keys or values (steering)", declare_add},
          {"scale", "vectors multiplied by a number", declare_scale},
          {"match-norm", "rows scaled to another cache's norms", declare_match_norm},
          {"noise", "vectors made up in place of those that are there", declare_noise},
          {"recompute", "rows run through their model again", declare_recompute}};
}

}  // namespace kvfold::cli
