#include "loaders/model_loader.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "engine/file.h"
#include "loaders/checkpoint.h"
#include "loaders/checkpoint_tokenizer.h"
#include "loaders/gguf_model.h"

namespace kvfold {

namespace {

// The folder of the checkpoint that `path` names, as a whole or by one of its files; "" where it does not.
std::string checkpoint_folder(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return path;
  const std::filesystem::path file(path);
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json"})
    if (file.filename() == name) return file.has_parent_path() ? file.parent_path().string() : ".";
  return "";
}

}  // namespace

Result<ModelSource> load_model_source(const std::string& path) {
  if (const std::string folder = checkpoint_folder(path); !folder.empty()) return load_checkpoint(folder);
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  constexpr std::string_view kGguf = "GGUF";
  const std::span<const std::byte> bytes = file->bytes();
  if (bytes.size() >= kGguf.size() && std::memcmp(bytes.data(), kGguf.data(), kGguf.size()) == 0)
    return load_gguf_model(file);
  std::string found;
  for (const std::byte b : bytes.first(std::min<size_t>(4, bytes.size())))
    found += fmt::format("{}{:02x}", found.empty() ? "" : " ", static_cast<unsigned>(b));
  return Status::error(fmt::format(
      "{}: magic at offset 0: found bytes {}, expected \"GGUF\", or a folder with config.json", path, found));
}

Result<LoadedVocabulary> load_vocabulary(const std::string& path) {
  // SentencePiece's files are named tokenizer.model, or by version: tokenizer.model.v3.
  const std::string name = std::filesystem::path(path).filename().string();
  std::error_code ignored;
  if ((name.ends_with("tokenizer.json") || name.find(".model") != std::string::npos) &&
      !std::filesystem::is_directory(path, ignored)) {
    KVFOLD_ASSIGN_OR_RETURN(CheckpointVocabulary vocabulary, read_tokenizer_file(path));
    return LoadedVocabulary{std::move(vocabulary.source), std::move(vocabulary.storage)};
  }
  KVFOLD_ASSIGN_OR_RETURN(ModelSource source, load_model_source(path));
  return LoadedVocabulary{std::move(source.vocabulary), std::move(source.storage)};
}

}  // namespace kvfold
