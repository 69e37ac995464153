#include "tests/signed_file.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/safetensors.h"

namespace kvfold::testing {
namespace {

std::string checksum_of(const std::string& bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

}  // namespace

SignedFile SignedFile::parse(const std::string& bytes) {
  const Result<SafetensorsFile> file = parse_safetensors(std::as_bytes(std::span(bytes)), "good");
  if (!file.ok()) std::abort();
  SignedFile out;
  out.metadata = file->metadata;
  for (const auto& [name, tensor] : file->tensors)
    out.tensors[name] = {
        tensor.dtype, tensor.shape,
        std::string(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size())};
  return out;
}

std::string SignedFile::build() const {
  std::map<std::string, std::string> signed_metadata = metadata;
  nlohmann::json header, checksums = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    checksums[name] = checksum_of(tensor.bytes);
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  if (sign_tensors && metadata.contains("checksums")) signed_metadata["checksums"] = checksums.dump();
  std::string all;
  for (const auto& [key, value] : signed_metadata)
    if (key != "checksum") all += key + "=" + value + "\n";
  if (sign_metadata && metadata.contains("checksum")) signed_metadata["checksum"] = checksum_of(all);
  header["__metadata__"] = signed_metadata;
  const std::string text = header.dump();
  const auto size = static_cast<uint64_t>(text.size());
  std::string out(sizeof size, '\0');
  std::memcpy(out.data(), &size, sizeof size);
  return out + text + data;
}

void SignedFile::set(const std::string& tensor, size_t index, float value) {
  std::memcpy(tensors.at(tensor).bytes.data() + index * sizeof value, &value, sizeof value);
}

Lie metadata_lie(const char* name, const char* key, const std::string& value,
                 std::vector<std::string> words) {
  words.emplace_back(key);
  return {name, [key, value](SignedFile& file) { file.metadata[key] = value; }, std::move(words)};
}

std::string wrong_with(const std::string& message, const std::string& path,
                       const std::vector<std::string>& words) {
  if (message.empty()) return "it was not refused";
  if (!message.starts_with(path + ": ")) return "does not name the file first: " + message;
  for (const char c : message)
    if (c < ' ' || c >= 127) return "is not one printable line: " + message;
  if (message.size() > path.size() + 500) return "is long: " + message;
  for (const std::string& word : words)
    if (message.find(word) == std::string::npos) return "lacks '" + word + "': " + message;
  return "";
}

}  // namespace kvfold::testing
