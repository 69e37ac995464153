#include "loaders/open.h"

#include <fmt/core.h>

#include <cstdlib>
#include <filesystem>

#include "loaders/json.h"
#include "loaders/model_loader.h"

namespace kvfold {
namespace {

std::filesystem::path weights_folder() {
  const char* folder = std::getenv("KVFOLD_WEIGHTS");
  return folder != nullptr ? folder : KVFOLD_SOURCE_DIR "/weights/cache";
}

struct TableEntry {
  std::string name;
  std::vector<std::string> aliases;
};

// The entries of the table of models.
Result<std::vector<TableEntry>> read_table() {
  KVFOLD_ASSIGN_OR_RETURN(const JsonObject table, JsonObject::open(KVFOLD_SOURCE_DIR "/weights/models.json"));
  KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json* models, table.array("models"));
  std::vector<TableEntry> out;
  for (const nlohmann::json& model : *models) {
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject entry,
                            table.object_in(model, fmt::format("models[{}]", out.size())));
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view name, entry.string("name"));
    KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json* aliases, entry.array("aliases"));
    out.push_back({std::string(name), {}});
    for (const nlohmann::json& alias : *aliases) {
      if (!alias.is_string()) return entry.wrong("aliases", alias, "names");
      out.back().aliases.push_back(alias.get<std::string>());
    }
  }
  return out;
}

// The table's name for `model`, which may be an alias; "" when unknown, with every known name in `known`.
Result<std::string> find_in_table(const std::string& model, std::string& known) {
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TableEntry> table, read_table());
  std::string found;
  for (const TableEntry& entry : table) {
    known += (known.empty() ? "" : ", ") + entry.name;
    if (entry.name == model) found = entry.name;
    for (const std::string& alias : entry.aliases)
      if (alias == model) found = entry.name;
  }
  return found;
}

}  // namespace

Result<std::string> resolve_model(const std::string& model) {
  std::error_code error;
  if (std::filesystem::exists(model, error)) return model;
  std::string known;
  KVFOLD_ASSIGN_OR_RETURN(const std::string name, find_in_table(model, known));
  if (name.empty())
    return Status::error(
        fmt::format("{}: neither a file nor a model of the table; known models: {}", model, known));
  // A GGUF file, or a checkpoint's folder.
  const std::filesystem::path path = weights_folder() / (name + ".gguf");
  if (!std::filesystem::exists(path, error) && std::filesystem::exists(weights_folder() / name, error))
    return (weights_folder() / name).string();
  if (!std::filesystem::exists(path, error))
    return Status::error(
        fmt::format("{}: not fetched yet; 'make weights MODEL={}' fetches it", path.string(), name));
  return path.string();
}

Result<std::string> find_fetched_model(const std::string& fingerprint) {
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TableEntry> table, read_table());
  for (const TableEntry& entry : table) {
    const std::string path = (weights_folder() / (entry.name + ".gguf")).string();
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    const Result<ModelSource> source = load_model_source(path);
    if (source.ok() && source->fingerprint == fingerprint) return path;
  }
  return std::string();
}

Result<std::unique_ptr<Session>> open_session(const std::string& model, const OpenOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string path, resolve_model(model));
  KVFOLD_ASSIGN_OR_RETURN(ModelSource source, load_model_source(path));
  if (!options.quantization.none) {
    KVFOLD_RETURN_IF_ERROR(check_finite(source));  // quantised, they would not show
    ThreadPool pool(options.cpu.threads > 0 ? options.cpu.threads : ThreadPool::available());
    KVFOLD_ASSIGN_OR_RETURN(source, quantize_model(std::move(source), options.quantization, pool));
  }
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                          make_backend(options.backend, {options.cpu, options.prefill, options.device}));
  KVFOLD_ASSIGN_OR_RETURN(const std::string plan,
                          backend->plan(source, {options.session.cache_type, options.session.cache_bytes,
                                                 options.session.chunk}));
  if (options.notice && !plan.empty()) options.notice(plan);
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<Model> loaded,
                          Model::create(std::move(source), std::move(backend)));
  return Session::create(std::move(loaded), options.session);
}

}  // namespace kvfold
