// Checkpoints of training: a safetensors file with each parameter's value, its two moments and its best
// value, and the state as metadata. Numbers are written so that they are read back bit for bit.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/kv/cache_metadata.h"
#include "engine/printable.h"
#include "engine/safetensors.h"
#include "engine/train/trainer.h"

namespace kvfold {
namespace {

constexpr const char* kVersion = "1";

std::span<const std::byte> bytes_of(const std::vector<float>& values) {
  return std::as_bytes(std::span(values));
}

// That the file is a checkpoint, whole as to its metadata, and of this training.
Status check_kind(const MetadataReader& meta, const SafetensorsFile& file, const std::string& identity) {
  if (!meta.has("kvfold_training") || file.metadata.at("kvfold_training") != kVersion)
    return meta.fail("metadata 'kvfold_training': expected " + std::string(kVersion) +
                     ": not a checkpoint of training");
  KVFOLD_ASSIGN_OR_RETURN(const std::string sum, meta.text("checksum"));
  if (const std::string found = metadata_checksum(file.metadata); found != sum)
    return meta.fail(fmt::format("metadata: its checksum is {}, expected {}", found, printable(sum)));
  KVFOLD_ASSIGN_OR_RETURN(const std::string theirs, meta.text("identity"));
  if (theirs == identity) return {};
  // Long ones share much of their beginning.
  const auto differ = static_cast<size_t>(
      std::mismatch(theirs.begin(), theirs.end(), identity.begin(), identity.end()).first - theirs.begin());
  const size_t from = differ < 40 ? 0 : differ - 40;
  return meta.fail(
      fmt::format("metadata 'identity': found {}{}, expected {}{}: another training's checkpoint (delete it "
                  "to begin anew)",
                  from > 0 ? "..." : "", printable(std::string_view(theirs).substr(from)),
                  from > 0 ? "..." : "", printable(std::string_view(identity).substr(from))));
}

Result<TrainingState> read_state(const MetadataReader& meta) {
  TrainingState state;
  KVFOLD_ASSIGN_OR_RETURN(state.step, meta.integer("step", 0, INT32_MAX));
  KVFOLD_ASSIGN_OR_RETURN(state.best_step, meta.integer("best_step", 0, INT32_MAX));
  KVFOLD_ASSIGN_OR_RETURN(const int64_t stale, meta.integer("stale", 0, INT32_MAX));
  state.stale = static_cast<int>(stale);
  KVFOLD_ASSIGN_OR_RETURN(const std::string best, meta.text("best"));
  char* end = nullptr;
  state.best = std::strtod(best.c_str(), &end);
  if (best.empty() || end != best.c_str() + best.size() || !std::isfinite(state.best))
    return meta.fail(fmt::format("metadata 'best': found '{}', expected a number", printable(best)));
  KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json curve, meta.parsed("curve"));
  if (!curve.is_array() || curve.size() % 2 != 0 ||
      !std::all_of(curve.begin(), curve.end(), [](const auto& x) { return x.is_number(); }))
    return meta.fail(fmt::format("metadata 'curve': found '{}', expected a list of steps, each with an NLL",
                                 printable(dump_json(curve))));
  state.curve = curve.get<std::vector<double>>();
  return state;
}

// The tensors of a checkpoint, each held to its checksum.
class TensorReader {
 public:
  TensorReader(const MetadataReader& meta, const SafetensorsFile& file) : meta_(meta), file_(file) {}

  // `size` finite numbers, none below `least`.
  Status read(const std::string& name, size_t size, std::vector<float>& values,
              float least = std::numeric_limits<float>::lowest()) {
    if (checksums_.is_null()) {
      KVFOLD_ASSIGN_OR_RETURN(checksums_, meta_.parsed("checksums"));
    }
    const auto at = file_.tensors.find(name);
    const std::vector<int64_t> shape = {static_cast<int64_t>(size)};
    if (at == file_.tensors.end() || at->second.dtype != "F32" || at->second.shape != shape)
      return meta_.fail(fmt::format("tensor '{}': expected F32 [{}]", name, size));
    if (!checksums_.contains(name) || checksums_[name] != checksum(at->second.bytes))
      return meta_.fail(fmt::format("tensor '{}': its checksum is another than the metadata's", name));
    values.resize(size);
    std::memcpy(values.data(), at->second.bytes.data(), at->second.bytes.size());
    const auto bad = std::find_if_not(values.begin(), values.end(),
                                      [&](float x) { return std::isfinite(x) && x >= least; });
    if (bad == values.end()) return {};
    return meta_.fail(fmt::format("tensor '{}': element {} is {}, expected a number{}", name,
                                  bad - values.begin(), *bad, least < 0 ? "" : " that is not negative"));
  }

 private:
  const MetadataReader& meta_;
  const SafetensorsFile& file_;
  nlohmann::json checksums_;
};

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
  KVFOLD_RETURN_IF_ERROR(check_kind(meta, file, identity));
  KVFOLD_ASSIGN_OR_RETURN(TrainingState state, read_state(meta));
  TensorReader reader(meta, file);
  const bool has_best = !state.curve.empty();
  struct Read {
    std::vector<float> value, mean, square, best;
  };
  std::vector<Read> read(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    const size_t size = p.value->size();
    KVFOLD_RETURN_IF_ERROR(reader.read("value." + p.name, size, read[i].value));
    KVFOLD_RETURN_IF_ERROR(reader.read("mean." + p.name, size, read[i].mean));
    KVFOLD_RETURN_IF_ERROR(reader.read("square." + p.name, size, read[i].square, 0));
    if (has_best) KVFOLD_RETURN_IF_ERROR(reader.read("best." + p.name, size, read[i].best));
  }
  const size_t expected = parameters_.size() * (has_best ? 4 : 3);
  if (file.tensors.size() != expected)
    return meta.fail(fmt::format("found {} tensors, expected {}", file.tensors.size(), expected));
  if (has_best) best_.resize(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    *parameters_[i].value = std::move(read[i].value);
    parameters_[i].mean = std::move(read[i].mean);
    parameters_[i].square = std::move(read[i].square);
    if (has_best) best_[i] = std::move(read[i].best);
  }
  state_ = std::move(state);
  return {};
}

}  // namespace kvfold
