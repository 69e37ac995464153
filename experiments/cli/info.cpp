// info: what a model file holds, what it would run on and the memory that it would take.
#include <fmt/core.h>

#include <map>
#include <memory>
#include <utility>

#include "engine/gpu_memory.h"
#include "engine/printable.h"
#include "engine/tokenizer/chat.h"
#include "experiments/backend_options.h"
#include "experiments/cli/common.h"
#include "kernels/cpu/cpu.h"
#include "kernels/formats/formats.h"
#include "loaders/gguf_save.h"
#include "loaders/model_loader.h"

namespace kvfold::cli {
namespace {

constexpr int64_t kPlanRows = 2048;

struct TypeTotal {
  int tensors = 0;
  int64_t bytes = 0;
};

int64_t bytes_of(const MatrixView& view) {
  const FormatInfo& format = format_info(view.type);
  return view.rows * (view.columns / format.block_elements) * format.block_bytes;
}

// How many tensors of each type there are, and their bytes.
std::map<std::string, TypeTotal> count_types(const std::vector<GgufTensorName>& tensors) {
  std::map<std::string, TypeTotal> totals;
  for (const GgufTensorName& tensor : tensors) {
    TypeTotal& total = totals[format_info(tensor.view.type).name];
    ++total.tensors;
    total.bytes += bytes_of(tensor.view);
  }
  return totals;
}

// A table of embeddings that is no output too: a token takes one row of it.
bool looked_up_only(const GgufTensorName& tensor, const ModelSource& source) {
  return tensor.name == "token_embd.weight" && !source.tied_output;
}

// Bytes of weights, by type, that a step of one token reads whole.
nlohmann::ordered_json read_for_a_token(const ModelSource& source, std::vector<GgufTensorName> tensors) {
  std::erase_if(tensors, [&](const GgufTensorName& tensor) { return looked_up_only(tensor, source); });
  nlohmann::ordered_json bytes = nlohmann::ordered_json::object();
  for (const auto& [name, total] : count_types(tensors)) bytes[name] = total.bytes;
  return bytes;
}

// What a session with one full cache needs, in bytes. On the CPU the weights are the file's own pages, and
// `repacked` what the kernels of this machine make of them for integer products (nothing with --exact). On
// CUDA all of it is device memory, the weights packed, in chunks as a driver gives it out (`total`; with
// --prefill cublas or auto `total_with_cublas`); tables that grow with caches and the driver's own context
// come on top.
nlohmann::ordered_json memory_plan(const ModelSource& source, const std::vector<GgufTensorName>& tensors) {
  const ModelConfig& c = source.config;
  const CpuKernels& kernels = *select_cpu_kernels();
  int64_t weights = 0;
  int64_t repacked = 0;
  for (const GgufTensorName& tensor : tensors) {
    weights += bytes_of(tensor.view);
    if (kernels.pack != nullptr && tensor.matrix && !looked_up_only(tensor, source) &&
        format_info(tensor.view.type).group != nullptr)
      repacked += static_cast<int64_t>(kernels.packed_bytes(tensor.view));
  }
  const int64_t kv = int64_t{2} * c.layers * c.kv_heads * c.head_dim * kPlanRows * 2;
  const int chunk = SessionOptions{}.chunk;
  int64_t activations = 0;
  for (const int64_t floats : Model::activation_floats(c, chunk)) activations += floats * 4;
  GpuPlan gpu = gpu_plan(source, chunk, Prefill::kCublas);
  const size_t with_cublas = gpu.arena() + gpu_chunks(static_cast<size_t>(kv));
  const size_t cublas = std::exchange(gpu.cublas, 0);
  return {{"rows", kPlanRows},
          {"cache_type", "f16"},
          {"cpu",
           {{"weights", weights},
            {"repacked", repacked},
            {"kv", kv},
            {"activations", activations},
            {"total", weights + repacked + kv + activations}}},
          {"cuda",
           {{"weights", gpu.weights},
            {"kv", kv},
            {"activations", gpu.activations},
            {"scratch", gpu.scratch},
            {"cublas", cublas},
            {"total", gpu.arena() + gpu_chunks(static_cast<size_t>(kv))},
            {"total_with_cublas", with_cublas}}}};
}

nlohmann::ordered_json describe(const ModelSource& source, const std::string& backend) {
  const ModelConfig& c = source.config;
  nlohmann::ordered_json types = nlohmann::ordered_json::object();
  int64_t bytes = 0;
  const std::vector<GgufTensorName> tensors = gguf_tensor_names(source);
  for (const auto& [name, total] : count_types(tensors)) {
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
          {"attention_window", c.attention_window},
          {"rope_base", c.rope_base},
          {"rope_pairs", c.rope_pairing == RopePairing::kInterleaved ? "interleaved" : "half-split"},
          {"tied_output", source.tied_output},
          {"tokenizer", source.vocabulary.model},
          {"pre_tokenizer", source.vocabulary.pre_tokenizer},
          {"chat_template", chat.ok() ? std::string(chat->name()) : ""},
          {"weights", types},
          {"weight_bytes", bytes},
          {"weight_bytes_per_token", read_for_a_token(source, tensors)},
          {"kv_bytes_per_row", {{"f16", 2 * row_elements}, {"f32", 4 * row_elements}}},
          {"backend", backend},
          {"memory_plan", memory_plan(source, tensors)}};
}

}  // namespace

Action add_info(CLI::App& app) {
  struct Options {
    std::string model;
    std::string backend = "auto";
    int device = -1;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("MODEL", options->model,
                 "a GGUF file, a checkpoint's folder, or a name of weights/models.json")
      ->required();
  add_backend_options(app, options->backend, options->device);
  app.add_flag("--json", options->json, "print as JSON");
  return [options]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(options->model));
    KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_model_source(path));
    BackendOptions wanted;
    wanted.device = options->device;
    KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<Backend> backend, make_backend(options->backend, wanted));
    const nlohmann::ordered_json description = describe(source, backend->name());
    if (options->json) {
      print_json(description);
      return {};
    }
    for (const auto& [key, value] : description.items()) {
      fmt::print("{:<24}{}\n", key,
                 value.is_string()
                     ? one_line(value.get<std::string>())
                     : value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    }
    return {};
  };
}

}  // namespace kvfold::cli
