// info: what a model file holds.
#include <fmt/core.h>

#include <map>
#include <memory>

#include "engine/tokenizer/chat.h"
#include "experiments/cli/common.h"
#include "kernels/formats/formats.h"
#include "loaders/model_loader.h"

namespace kvfold::cli {
namespace {

struct TypeTotal {
  int tensors = 0;
  int64_t bytes = 0;
};

// How many tensors of each type there are, and their bytes.
std::map<std::string, TypeTotal> count_types(const ModelSource& source) {
  std::map<std::string, TypeTotal> totals;
  const auto add = [&](const MatrixView& view) {
    if (view.data == nullptr) return;
    const FormatInfo& format = format_info(view.type);
    TypeTotal& total = totals[format.name];
    ++total.tensors;
    total.bytes += view.rows * (view.columns / format.block_elements) * format.block_bytes;
  };
  add(source.embedding);
  add(source.output_norm);
  if (!source.tied_output) add(source.output);
  for (const LayerTensors& l : source.layers)
    for (const MatrixView* view : {&l.attention_norm, &l.wq, &l.wk, &l.wv, &l.wo, &l.bq, &l.bk, &l.bv, &l.bo,
                                   &l.q_norm, &l.k_norm, &l.ffn_norm, &l.gate, &l.up, &l.down})
      add(*view);
  return totals;
}

nlohmann::ordered_json describe(const ModelSource& source) {
  const ModelConfig& c = source.config;
  nlohmann::ordered_json types = nlohmann::ordered_json::object();
  int64_t bytes = 0;
  for (const auto& [name, total] : count_types(source)) {
    types[name] = {{"tensors", total.tensors}, {"bytes", total.bytes}};
    bytes += total.bytes;
  }
  const int64_t row_elements = int64_t{2} * c.layers * c.kv_heads * c.head_dim;
  const Result<ChatTemplate> chat = ChatTemplate::from(source.vocabulary);
  return {{"path", source.path},
          {"architecture", c.architecture},
          {"name", c.name},
          {"fingerprint", source.fingerprint},
          {"layers", c.layers},
          {"model_dim", c.model_dim},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"ffn_dim", c.ffn_dim},
          {"vocab_size", c.vocab_size},
          {"context_length", c.context_length},
          {"rope_base", c.rope_base},
          {"rope_pairs", c.rope_pairing == RopePairing::kInterleaved ? "interleaved" : "half-split"},
          {"tied_output", source.tied_output},
          {"tokenizer", source.vocabulary.model},
          {"pre_tokenizer", source.vocabulary.pre_tokenizer},
          {"chat_template", chat.ok() ? std::string(chat->name()) : ""},
          {"weights", types},
          {"weight_bytes", bytes},
          {"kv_bytes_per_row", {{"f16", 2 * row_elements}, {"f32", 4 * row_elements}}},
          {"bytes_at_2048_rows_f16", bytes + 2048 * 2 * row_elements}};
}

}  // namespace

Action add_info(CLI::App& app) {
  struct Options {
    std::string model;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("MODEL", options->model,
                 "a GGUF file, a checkpoint's folder, or a name of weights/models.json")
      ->required();
  app.add_flag("--json", options->json, "print as JSON");
  return [options]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(options->model));
    KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_model_source(path));
    const nlohmann::ordered_json description = describe(source);
    if (options->json) {
      print_json(description);
      return {};
    }
    for (const auto& [key, value] : description.items()) {
      fmt::print("{:<24}{}\n", key,
                 value.is_string()
                     ? value.get<std::string>()
                     : value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    }
    return {};
  };
}

}  // namespace kvfold::cli
