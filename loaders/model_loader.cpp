#include "loaders/model_loader.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "engine/file.h"
#include "loaders/gguf_model.h"

namespace kvfold {

Result<ModelSource> load_model_source(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  constexpr std::string_view kGguf = "GGUF";
  const std::span<const std::byte> bytes = file->bytes();
  if (bytes.size() >= kGguf.size() && std::memcmp(bytes.data(), kGguf.data(), kGguf.size()) == 0)
    return load_gguf_model(path);
  std::string found;
  for (const std::byte b : bytes.first(std::min<size_t>(4, bytes.size())))
    found += fmt::format("{}{:02x}", found.empty() ? "" : " ", static_cast<unsigned>(b));
  return Status::error(fmt::format("{}: magic at offset 0: found bytes {}, expected \"GGUF\"", path, found));
}

}  // namespace kvfold
