#include "engine/kv/cache_metadata.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "engine/printable.h"
#include "engine/strict_json.h"

namespace kvfold {
namespace {

using nlohmann::json;

const char* part_name(Part part) { return part == Part::kKey ? "k" : "v"; }

// The deepest JSON text of a cache file is a list of lists.
constexpr int kMostLevels = 2;

}  // namespace

std::string dump_json(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}
std::string to_utf8(const std::string& text) { return json::parse(dump_json(text)).get<std::string>(); }

std::string checksum(std::span<const std::byte> bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

const char* cache_type_name(CacheType type) {
  return type == CacheType::kF16 ? "f16" : type == CacheType::kF32 ? "f32" : "q8";
}
const char* element_dtype(CacheType type) {
  return type == CacheType::kF16 ? "F16" : type == CacheType::kF32 ? "F32" : "I8";
}
const char* pairing_name(RopePairing pairing) {
  return pairing == RopePairing::kInterleaved ? "interleaved" : "half-split";
}

bool is_integer_in(const json& value, int64_t least, int64_t most) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return false;
  return least <= value.get<int64_t>() && value.get<int64_t>() <= most;
}

std::vector<TensorPlan> plan_tensors(const CacheShape& shape, std::span<const int64_t> lane_rows,
                                     int64_t rows) {
  std::vector<TensorPlan> plans;
  for (const Part part : {Part::kKey, Part::kValue})
    for (int layer = 0; layer < shape.layers; ++layer) {
      bool uniform = true;
      for (int head = 0; head < shape.kv_heads; ++head) uniform &= lane_rows[shape.lane(layer, head)] == rows;
      if (uniform) {
        std::vector<int> lanes(shape.kv_heads);
        std::iota(lanes.begin(), lanes.end(), shape.lane(layer, 0));
        plans.push_back({part, fmt::format("layers.{}.{}", layer, part_name(part)), lanes, rows, false});
        continue;
      }
      for (int head = 0; head < shape.kv_heads; ++head) {
        const int lane = shape.lane(layer, head);
        plans.push_back({part,
                         fmt::format("layers.{}.heads.{}.{}", layer, head, part_name(part)),
                         {lane},
                         lane_rows[lane],
                         true});
      }
    }
  return plans;
}

std::string lane_name(const CacheShape& shape, int lane) {
  return fmt::format("{}.{}", lane / shape.kv_heads, lane % shape.kv_heads);
}

std::string metadata_checksum(const std::map<std::string, std::string>& metadata) {
  std::string all;
  for (const auto& [key, value] : metadata)
    if (key != "checksum") all += key + "=" + value + "\n";
  return checksum(std::as_bytes(std::span(all)));
}

Result<std::string> MetadataReader::text(const std::string& key) const {
  const auto at = metadata_->find(key);
  if (at == metadata_->end()) return fail(fmt::format("metadata key '{}' is missing", key));
  return at->second;
}

Result<json> MetadataReader::parsed(const std::string& key) const {
  KVFOLD_ASSIGN_OR_RETURN(const std::string value, text(key));
  Result<json> out = parse_json(value, kMostLevels);
  if (!out.ok())
    return fail(fmt::format("metadata '{}': found '{}', expected JSON: {}", key, printable(value),
                            out.status().message()));
  return out;
}

Result<int64_t> MetadataReader::integer(const std::string& key, int64_t least, int64_t most) const {
  KVFOLD_ASSIGN_OR_RETURN(const json number, parsed(key));
  if (!is_integer_in(number, least, most))
    return fail(fmt::format("metadata '{}': found '{}', expected an integer in [{}, {}]", key,
                            printable(dump_json(number)), least, most));
  return number.get<int64_t>();
}

Status MetadataReader::integers(const std::string& what, const json& list, int64_t least, int64_t most,
                                std::vector<int32_t>& out) const {
  if (!list.is_array()) return fail(fmt::format("metadata '{}': expected a list of integers", what));
  for (const json& x : list) {
    if (!is_integer_in(x, least, most))
      return fail(fmt::format("metadata '{}': element {}: found '{}', expected an integer in [{}, {}]", what,
                              out.size(), printable(dump_json(x)), least, most));
    out.push_back(x.get<int32_t>());
  }
  return {};
}

Result<std::vector<int32_t>> MetadataReader::integers(const std::string& key, int64_t least,
                                                      int64_t most) const {
  KVFOLD_ASSIGN_OR_RETURN(const json list, parsed(key));
  std::vector<int32_t> out;
  KVFOLD_RETURN_IF_ERROR(integers(key, list, least, most, out));
  return out;
}

Status MetadataReader::not_one_of(const std::string& key, const std::string& found,
                                  const std::string& known) const {
  return fail(fmt::format("metadata '{}': found '{}', expected one of {}", key, printable(found), known));
}

Result<CacheShape> MetadataReader::shape() const {
  KVFOLD_ASSIGN_OR_RETURN(const int64_t layers, integer("layers", 1, 1 << 20));
  KVFOLD_ASSIGN_OR_RETURN(const int64_t heads, integer("kv_heads", 1, 1 << 20));
  KVFOLD_ASSIGN_OR_RETURN(const int64_t dim, integer("head_dim", 1, 1 << 16));
  // What no model comes near, and more would cost: every lane takes memory before its rows do.
  constexpr int64_t kMostLanes = 1 << 18;
  if (layers * heads > kMostLanes)
    return fail(fmt::format("metadata 'layers' and 'kv_heads': found {} x {}, expected a product up to {}",
                            layers, heads, kMostLanes));
  return CacheShape{static_cast<int>(layers), static_cast<int>(heads), static_cast<int>(dim)};
}

Result<CacheModelInfo> MetadataReader::model(const CacheShape& shape) const {
  CacheModelInfo out;
  KVFOLD_ASSIGN_OR_RETURN(out.fingerprint, text("model_fingerprint"));
  KVFOLD_ASSIGN_OR_RETURN(out.architecture, text("architecture"));
  KVFOLD_ASSIGN_OR_RETURN(out.name, text("model_name"));
  KVFOLD_ASSIGN_OR_RETURN(const json base, parsed("rope_base"));
  const auto is_positive = [](const json& x) {
    return x.is_number() && x.get<double>() > 0 && x.get<double>() <= std::numeric_limits<float>::max();
  };
  if (!is_positive(base))
    return fail(fmt::format("metadata 'rope_base': found '{}', expected a finite number above 0",
                            printable(dump_json(base))));
  out.rope_base = base.get<float>();
  KVFOLD_ASSIGN_OR_RETURN(
      out.rope_pairing,
      one_of("rope_pairing", std::array{RopePairing::kInterleaved, RopePairing::kHalfSplit}, pairing_name));
  KVFOLD_ASSIGN_OR_RETURN(const int64_t rotary, integer("rotary_dim", 0, shape.head_dim));
  out.rotary_dim = static_cast<int>(rotary);
  if (!has("rope_factors")) return out;
  KVFOLD_ASSIGN_OR_RETURN(const json factors, parsed("rope_factors"));
  if (!factors.is_array() || factors.size() * 2 != static_cast<size_t>(rotary) ||
      !std::all_of(factors.begin(), factors.end(), is_positive))
    return fail(fmt::format("metadata 'rope_factors': expected {} finite numbers above 0", rotary / 2));
  out.rope_factors = factors.get<std::vector<float>>();
  return out;
}

}  // namespace kvfold
