// attention: the weights with which a text's tokens attend to the rows of a cache, as a NumPy file.
#include <fmt/core.h>

#include <array>
#include <memory>
#include <numeric>

#include "engine/attention_weights.h"
#include "engine/file.h"
#include "engine/kv/cache_file.h"
#include "engine/printable.h"
#include "experiments/cli/common.h"
#include "experiments/cli/npy.h"

namespace kvfold::cli {
namespace {

struct Options {
  ModelOptions model;
  TextOptions text;
  std::string cache;
  std::string layers = "*";
  std::string heads = "*";
  std::string out;
  bool json = false;
};

// Rows whose share of the attention is told: the first row, which often takes most of it whatever it holds
// (Xiao et al. 2023, arXiv:2309.17453), and the others by where they came from.
struct Group {
  std::string name;
  std::vector<int> slots;
  AttentionMass mass;
};

std::vector<Group> group_rows(const KvCache& cache, int text_begin, const AttentionWeights& weights) {
  std::vector<Group> groups = {{"row 0", {}, {}}};
  const Rows& rows = cache.rows();
  for (int slot = 0; slot < cache.size(); ++slot) {
    const std::string name = slot == 0            ? "row 0"
                             : slot >= text_begin ? "the text"
                                                  : "cache: " + rows.sources[rows.origins[slot].source];
    const auto is_named = [&](const Group& group) { return group.name == name; };
    auto at = std::find_if(groups.begin(), groups.end(), is_named);
    if (at == groups.end()) at = groups.insert(groups.end(), {name, {}, {}});
    at->slots.push_back(slot);
  }
  for (Group& group : groups) group.mass = attention_mass(weights, group.slots);
  return groups;
}

void print_table(const AttentionWeights& weights, const std::vector<Group>& groups) {
  fmt::print("share of the attention of the text's {} tokens, mean over heads:\nlayer", weights.queries);
  for (const Group& group : groups) fmt::print("  {:>10}", one_line(group.name));
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    fmt::print("\n{:>5}", weights.layers[layer]);
    for (const Group& group : groups)
      fmt::print("  {:>{}.4f}", group.mass.by_layer[layer], std::max<size_t>(10, group.name.size()));
  }
  fmt::print("\n mean");
  for (const Group& group : groups)
    fmt::print("  {:>{}.4f}", group.mass.mean, std::max<size_t>(10, group.name.size()));
  fmt::print("\n rows");
  for (const Group& group : groups)
    fmt::print("  {:>{}}", group.slots.size(), std::max<size_t>(10, group.name.size()));
  fmt::print("\n");
}

nlohmann::ordered_json to_json(const Group& group) {
  nlohmann::ordered_json by_head = nlohmann::ordered_json::array();
  for (size_t i = 0; i < group.mass.by_head.size(); i += static_cast<size_t>(group.mass.heads))
    by_head.push_back(std::vector<double>(&group.mass.by_head[i], &group.mass.by_head[i] + group.mass.heads));
  return {{"name", group.name},
          {"rows", group.slots},
          {"mean", group.mass.mean},
          {"by_layer", group.mass.by_layer},
          {"by_head", by_head}};
}

Status run(const Options& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  ModelOptions with = options.model;
  KVFOLD_ASSIGN_OR_RETURN(const CacheFileInfo info, read_cache_info(options.cache));
  with.cache_type = cache_type_name(info.type);
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, with.open());
  const Model& model = session->model();
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<int> layers,
                          parse_ranges(options.layers, "layers", model.config().layers));
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<int> heads,
                          parse_ranges(options.heads, "heads", model.config().heads));
  if (layers.empty() || heads.empty())
    return Status::error("--layers and --heads: expected at least one of each");
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  KVFOLD_ASSIGN_OR_RETURN(KvCache cache, load_cache(options.cache, cache_model_info(model.source()),
                                                    model.cache_shape(), session->pool()));
  const int text_begin = cache.size();
  KVFOLD_ASSIGN_OR_RETURN(const AttentionWeights weights,
                          feed_with_attention(*session, cache, ids, layers, heads));

  const std::array shape = {layers.size(), heads.size(), ids.size(), static_cast<size_t>(weights.rows)};
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(options.out));
  KVFOLD_RETURN_IF_ERROR(file.write(npy_header(shape)));
  KVFOLD_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(weights.weights))));
  KVFOLD_RETURN_IF_ERROR(file.commit());

  const std::vector<Group> groups = group_rows(cache, text_begin, weights);
  if (options.json) {
    nlohmann::ordered_json mass = nlohmann::ordered_json::array();
    for (const Group& group : groups) mass.push_back(to_json(group));
    print_json({{"out", options.out},
                {"shape", shape},
                {"layers", layers},
                {"heads", heads},
                {"ids", ids},
                {"tokens", cache.rows().tokens},
                {"positions", cache.rows().positions},
                {"mass", mass}});
  } else {
    fmt::print("{}: [{} layers, {} heads, {} queries, {} rows] f32\n", options.out, shape[0], shape[1],
               shape[2], shape[3]);
    print_table(weights, groups);
  }
  return {};
}

}  // namespace

Action add_attention(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->model.declare(app, false);
  app.add_option("CACHE", options->cache, "a cache file of that model")->required();
  options->text.declare(app);
  app.add_option(
         "--out", options->out,
         "the .npy file to write: f32 [layers, heads, the text's tokens, rows], where the rows are the "
         "cache's and then the text's")
      ->required();
  app.add_option("--layers", options->layers, "which layers: \"0-9,20\", or * for all")
      ->capture_default_str();
  app.add_option("--heads", options->heads, "which query heads, likewise")->capture_default_str();
  app.add_flag("--json", options->json, "print shape, tokens, positions and shares as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvfold::cli
