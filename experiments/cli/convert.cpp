// convert, make-random: GGUF files.
#include <fmt/core.h>

#include <filesystem>
#include <memory>

#include "experiments/cli/common.h"
#include "experiments/say.h"
#include "loaders/convert.h"
#include "loaders/model_loader.h"
#include "loaders/random_model.h"

namespace kvfold::cli {
namespace {

struct ConvertOptions {
  std::string model, out, quantize = "none";
  int threads = 0;
};

Status convert(const ConvertOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const Quantization quantization, Quantization::parse(options.quantize));
  KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(options.model));
  KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_model_source(path));
  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::available());
  KVFOLD_RETURN_IF_ERROR(convert_to_gguf(source, quantization, pool, options.out));
  fmt::print("{}: {} bytes\n", options.out, std::filesystem::file_size(options.out));
  for (const std::string& remark : gguf_remarks(source)) say(fmt::format("{}: {}", options.out, remark));
  return {};
}

struct RandomOptions {
  std::string like, out, types = "q4_0";
  uint64_t seed = 0;
};

Status make_random(const RandomOptions& options) {
  const RandomTypes types = options.types == "q4_k_m" ? RandomTypes::kQ4_K_M : RandomTypes::kQ4_0;
  KVFOLD_RETURN_IF_ERROR(make_random_model(options.like, types, options.seed, options.out));
  fmt::print("{}: {} bytes\n", options.out, std::filesystem::file_size(options.out));
  return {};
}

}  // namespace

Action add_convert(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  app.add_option("MODEL", options->model,
                 "a GGUF file, a checkpoint's folder, or a name of weights/models.json")
      ->required();
  app.add_option("OUT", options->out, "the GGUF file to write")->required();
  app.add_option("--quantize", options->quantize, "the type of its matrices: q4_0, q4_1, q8_0, q4_k, or none")
      ->capture_default_str();
  app.add_option("--threads", options->threads, "threads (default: one for every CPU allowed)")
      ->check(CLI::Range(1, 1024));
  return [options] { return convert(*options); };
}

Action add_make_random(CLI::App& app) {
  auto options = std::make_shared<RandomOptions>();
  app.add_option("--like", options->like, "tinyllama-1.1b, smollm-360m, qwen-0.5b or smollm-135m")
      ->required();
  app.add_option("OUT", options->out, "the GGUF file to write")->required();
  app.add_option("--types", options->types, "types as in the usual files: q4_0 or q4_k_m")
      ->check(CLI::IsMember({"q4_0", "q4_k_m"}))
      ->capture_default_str();
  app.add_option("--seed", options->seed, "seed of the weights");
  return [options] { return make_random(*options); };
}

}  // namespace kvfold::cli
