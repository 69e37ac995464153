#include "engine/kv/projector.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "engine/kv/cache_metadata.h"
#include "engine/kv/ridge_projector.h"
#include "engine/printable.h"
#include "engine/safetensors.h"
#include "engine/train/pass_projector.h"
#include "kernels/half.h"

namespace kvfold {
namespace {

struct Kind {
  const char* name;
  Result<std::unique_ptr<Projector>> (*make)(ProjectorData data);
  // The names of its tensors begin with these.
  std::array<const char*, 2> prefixes;
};
constexpr std::array kKinds = {
    Kind{"ridge", RidgeProjector::make, {"ridge.", "ridge."}},
    Kind{"mlp", PassProjector::make, {"ridge.", "mlp."}},
    Kind{"fuser", PassProjector::make, {"ridge.", "fuser."}},
};

const Kind* find_kind(const std::string& name) {
  const auto* at = std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return name == k.name; });
  return at == kKinds.end() ? nullptr : at;
}

// ---- files ----

constexpr const char* kNotePrefix = "note.";

void describe(const std::string& role, const ProjectorModel& model,
              std::map<std::string, std::string>& metadata) {
  metadata[role + ".fingerprint"] = to_utf8(model.fingerprint);
  metadata[role + ".name"] = to_utf8(model.name);
  metadata[role + ".layers"] = std::to_string(model.shape.layers);
  metadata[role + ".kv_heads"] = std::to_string(model.shape.kv_heads);
  metadata[role + ".head_dim"] = std::to_string(model.shape.head_dim);
}

std::vector<std::byte> to_bytes(const ProjectorTensor& tensor) {
  std::vector<std::byte> out(tensor.data.size() * (tensor.half ? 2 : 4));
  if (out.empty()) return out;  // memcpy takes no null pointers
  if (!tensor.half) {
    std::memcpy(out.data(), tensor.data.data(), out.size());
    return out;
  }
  for (size_t i = 0; i < tensor.data.size(); ++i) {
    const uint16_t bits = f32_to_f16(tensor.data[i]);
    std::memcpy(out.data() + 2 * i, &bits, sizeof bits);
  }
  return out;
}

class Reader {
 public:
  Reader(const std::string& path, const SafetensorsFile& file) : file_(file), meta_(path, file.metadata) {}

  Result<ProjectorData> read() const {
    ProjectorData data;
    if (!meta_.has("kvfold_projector"))
      return meta_.fail("no metadata 'kvfold_projector': not a projector file");
    const std::string& version = file_.metadata.at("kvfold_projector");
    if (version != std::to_string(kProjectorFileVersion))
      return meta_.fail(fmt::format("metadata 'kvfold_projector': found version {}, expected {}",
                                    printable(version), kProjectorFileVersion));
    KVFOLD_ASSIGN_OR_RETURN(const std::string sum, meta_.text("checksum"));
    if (const std::string found = metadata_checksum(file_.metadata); found != sum)
      return meta_.fail(fmt::format("metadata: its checksum is {}, expected {}", found, printable(sum)));
    KVFOLD_ASSIGN_OR_RETURN(data.kind, meta_.text("kind"));
    KVFOLD_ASSIGN_OR_RETURN(data.source, model("source"));
    KVFOLD_ASSIGN_OR_RETURN(data.target, model("target"));
    const std::string prefix = kNotePrefix;
    for (const auto& [key, value] : file_.metadata)
      if (key.starts_with(prefix)) data.notes[key.substr(prefix.size())] = value;
    KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json checksums, meta_.parsed("checksums"));
    for (const auto& [name, tensor] : file_.tensors) {
      const auto expected = checksums.find(name);
      const std::string found = checksum(tensor.bytes);
      if (expected == checksums.end() || *expected != found)
        return meta_.fail(fmt::format(
            "tensor '{}': its checksum is {}, expected {}", printable(name), found,
            expected == checksums.end() ? "one in the metadata" : printable(dump_json(*expected))));
      KVFOLD_ASSIGN_OR_RETURN(data.tensors[name], values(name, tensor));
    }
    return data;
  }

 private:
  Result<ProjectorModel> model(const std::string& role) const {
    ProjectorModel out;
    KVFOLD_ASSIGN_OR_RETURN(out.fingerprint, meta_.text(role + ".fingerprint"));
    KVFOLD_ASSIGN_OR_RETURN(out.name, meta_.text(role + ".name"));
    constexpr int64_t kMost = 1 << 16;  // no product of the three overflows
    KVFOLD_ASSIGN_OR_RETURN(const int64_t layers, meta_.integer(role + ".layers", 1, 4096));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t heads, meta_.integer(role + ".kv_heads", 1, 1024));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t dims, meta_.integer(role + ".head_dim", 1, kMost));
    out.shape = {static_cast<int>(layers), static_cast<int>(heads), static_cast<int>(dims)};
    if (layers * heads * dims > (INT32_MAX >> 1))
      return meta_.fail(
          fmt::format("metadata '{}.*': a row of {} layers, {} KV heads, head_dim {} is beyond "
                      "what an index can hold",
                      role, layers, heads, dims));
    return out;
  }

  Result<ProjectorTensor> values(const std::string& name, const SafetensorsTensor& tensor) const {
    if (tensor.dtype != "F32" && tensor.dtype != "F16")
      return meta_.fail(
          fmt::format("tensor '{}': found {}, expected F32 or F16", printable(name), tensor.dtype));
    ProjectorTensor out{tensor.shape, {}, tensor.dtype == "F16"};
    if (tensor.bytes.empty()) return out;  // memcpy takes no null pointers
    out.data.resize(tensor.bytes.size() / (out.half ? 2 : 4));
    if (!out.half) {
      std::memcpy(out.data.data(), tensor.bytes.data(), tensor.bytes.size());
      return out;
    }
    for (size_t i = 0; i < out.data.size(); ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, tensor.bytes.data() + 2 * i, sizeof bits);
      out.data[i] = f16_to_f32(bits);
    }
    return out;
  }

  const SafetensorsFile& file_;
  MetadataReader meta_;
};

}  // namespace

Result<const ProjectorTensor*> ProjectorData::tensor(const std::string& name,
                                                     const std::vector<int64_t>& shape) const {
  const auto at = tensors.find(name);
  if (at == tensors.end()) return Status::error(fmt::format("projector: tensor '{}' is missing", name));
  if (at->second.shape != shape)
    return Status::error(fmt::format("projector: tensor '{}': found the shape {}, expected {}", name,
                                     dump_json(at->second.shape), dump_json(shape)));
  return &at->second;
}

Status check_projector(const ProjectorData& data) {
  const Kind* kind = find_kind(data.kind);
  if (kind == nullptr) {
    std::string known;
    for (const Kind& k : kKinds) known += (known.empty() ? "" : ", ") + std::string(k.name);
    return Status::error(
        fmt::format("projector: unknown kind '{}', expected one of {}", printable(data.kind), known));
  }
  for (const auto& entry : data.tensors) {
    const std::string& name = entry.first;
    const std::vector<float>& values = entry.second.data;
    if (std::none_of(kind->prefixes.begin(), kind->prefixes.end(),
                     [&](const char* prefix) { return name.starts_with(prefix); }))
      return Status::error(
          fmt::format("projector: tensor '{}' is none of those of the kind {}", printable(name), kind->name));
    const auto bad = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    if (bad != values.end())
      return Status::error(fmt::format("projector: tensor '{}': element {} is {}, expected a number",
                                       printable(name), bad - values.begin(), *bad));
  }
  return {};
}

Result<std::unique_ptr<Projector>> make_projector(ProjectorData data) {
  KVFOLD_RETURN_IF_ERROR(check_projector(data));
  const Kind* kind = find_kind(data.kind);
  return kind->make(std::move(data));
}

Result<KvCache> project(const Projector& projector, const KvCache& source, const AlignedTokens& tokens,
                        const std::shared_ptr<PagePool>& pool, const std::string& origin,
                        ThreadPool& threads) {
  const std::vector<float> rows = gather_rows(source, tokens.source_row);
  std::vector<float> out(tokens.target.size() * projector.target_width());
  projector.apply(rows.data(), static_cast<int>(tokens.target.size()), true, out.data(), threads);
  return cache_of_rows(pool, projector.data().target.shape, tokens.target, out.data(), origin);
}

Status save_projector(const ProjectorData& data, const std::string& path) {
  std::map<std::string, std::string> metadata = {{"kvfold_projector", std::to_string(kProjectorFileVersion)},
                                                 {"kind", data.kind}};
  describe("source", data.source, metadata);
  describe("target", data.target, metadata);
  for (const auto& [key, value] : data.notes) metadata[kNotePrefix + key] = to_utf8(value);
  nlohmann::json checksums = nlohmann::json::object();
  std::vector<SafetensorsEntry> entries;
  std::vector<std::byte> bytes;
  for (const auto& entry : data.tensors) {
    const std::string& name = entry.first;
    const ProjectorTensor& tensor = entry.second;
    checksums[name] = checksum(to_bytes(tensor));
    entries.push_back({name, tensor.half ? "F16" : "F32", tensor.shape, [&bytes, &tensor] {
                         bytes = to_bytes(tensor);
                         return std::span<const std::byte>(bytes);
                       }});
  }
  metadata["checksums"] = dump_json(checksums);
  metadata["checksum"] = metadata_checksum(metadata);
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(write_safetensors(file, metadata, entries));
  return file.commit();
}

Result<ProjectorData> load_projector(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  KVFOLD_ASSIGN_OR_RETURN(const SafetensorsFile file, parse_safetensors(map->bytes(), path));
  return Reader(path, file).read();
}

}  // namespace kvfold
