// Checkpoints of training: a safetensors file with each parameter's value, its two moments and its best
// value, and the state as metadata. Numbers are written so that they are read back bit for bit.
#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/kv/cache_metadata.h"
#include "engine/safetensors.h"
#include "engine/train/trainer.h"

namespace kvfold {
namespace {

constexpr const char* kVersion = "1";

std::span<const std::byte> bytes_of(const std::vector<float>& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

Status ProjectorTrainer::save(const std::string& path, const std::string& identity) const {
  std::vector<SafetensorsEntry> entries;
  nlohmann::json checksums = nlohmann::json::object();
  const auto add = [&](const std::string& name, const std::vector<float>& values) {
    checksums[name] = checksum(bytes_of(values));
    entries.push_back(
        {name, "F32", {static_cast<int64_t>(values.size())}, [&values] { return bytes_of(values); }});
  };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    add("value." + p.name, *p.value);
    add("mean." + p.name, p.mean);
    add("square." + p.name, p.square);
    if (!best_.empty()) add("best." + p.name, best_[i]);
  }
  std::map<std::string, std::string> metadata = {
      {"kvfold_training", kVersion},
      {"identity", identity},
      {"step", std::to_string(state_.step)},
      {"best_step", std::to_string(state_.best_step)},
      {"best", fmt::format("{:a}", state_.best)},
      {"stale", std::to_string(state_.stale)},
      {"curve", nlohmann::json(state_.curve).dump()},
      {"checksums", dump_json(checksums)},
  };
  metadata["checksum"] = metadata_checksum(metadata);
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(write_safetensors(file, metadata, entries));
  return file.commit();
}

Status ProjectorTrainer::load(const std::string& path, const std::string& identity) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  KVFOLD_ASSIGN_OR_RETURN(const SafetensorsFile file, parse_safetensors(map->bytes(), path));
  const MetadataReader meta(path, file.metadata);
  if (!meta.has("kvfold_training") || file.metadata.at("kvfold_training") != kVersion)
    return meta.fail("metadata 'kvfold_training': expected " + std::string(kVersion) +
                     ": not a checkpoint of training");
  KVFOLD_ASSIGN_OR_RETURN(const std::string sum, meta.text("checksum"));
  if (const std::string found = metadata_checksum(file.metadata); found != sum)
    return meta.fail(fmt::format("metadata: its checksum is {}, expected {}", found, sum));
  KVFOLD_ASSIGN_OR_RETURN(const std::string theirs, meta.text("identity"));
  if (theirs != identity)
    return meta.fail(
        fmt::format("metadata 'identity': found {}, expected {}: another training's checkpoint (delete it "
                    "to begin anew)",
                    theirs, identity));
  TrainingState state;
  KVFOLD_ASSIGN_OR_RETURN(state.step, meta.integer("step", 0, INT32_MAX));
  KVFOLD_ASSIGN_OR_RETURN(state.best_step, meta.integer("best_step", 0, INT32_MAX));
  KVFOLD_ASSIGN_OR_RETURN(const int64_t stale, meta.integer("stale", 0, INT32_MAX));
  state.stale = static_cast<int>(stale);
  KVFOLD_ASSIGN_OR_RETURN(const std::string best, meta.text("best"));
  state.best = std::strtod(best.c_str(), nullptr);
  KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json curve, meta.parsed("curve"));
  for (const nlohmann::json& number : curve) state.curve.push_back(number.get<double>());
  KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json checksums, meta.parsed("checksums"));
  const auto read = [&](const std::string& name, std::vector<float>& values) -> Status {
    const auto at = file.tensors.find(name);
    if (at == file.tensors.end() || at->second.dtype != "F32" ||
        at->second.bytes.size() != values.size() * sizeof(float))
      return meta.fail(fmt::format("tensor '{}': expected F32 [{}]", name, values.size()));
    if (!checksums.contains(name) || checksums[name] != checksum(at->second.bytes))
      return meta.fail(fmt::format("tensor '{}': its checksum is another than the metadata's", name));
    std::memcpy(values.data(), at->second.bytes.data(), at->second.bytes.size());
    return {};
  };
  const bool has_best = !state.curve.empty();
  if (has_best) best_.resize(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = parameters_[i];
    KVFOLD_RETURN_IF_ERROR(read("value." + p.name, *p.value));
    KVFOLD_RETURN_IF_ERROR(read("mean." + p.name, p.mean));
    KVFOLD_RETURN_IF_ERROR(read("square." + p.name, p.square));
    if (!has_best) continue;
    best_[i].resize(p.value->size());
    KVFOLD_RETURN_IF_ERROR(read("best." + p.name, best_[i]));
  }
  state_ = std::move(state);
  return {};
}

}  // namespace kvfold
