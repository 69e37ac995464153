#include "engine/kv/exchange.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "engine/kv/cache_metadata.h"
#include "engine/kv/lane_matrix.h"
#include "engine/printable.h"
#include "engine/safetensors.h"

namespace kvfold {
namespace {

constexpr std::array kParts = {Part::kKey, Part::kValue};

std::string tensor_name(Part part, int layer) {
  return fmt::format("layers.{}.{}", layer, part == Part::kKey ? "k" : "v");
}

// Turns keys by RoPE (Su et al. 2021) and back, and puts their dimensions in half-split order and back.
class KeyTurner {
 public:
  KeyTurner(const CacheModelInfo& model, const std::vector<int32_t>& positions)
      : pairs_(model.rotary_dim / 2), interleaved_(model.rope_pairing == RopePairing::kInterleaved) {
    for (const int32_t position : positions)
      for (int i = 0; i < pairs_; ++i) {
        const double factor = model.rope_factors.empty() ? 1.0 : model.rope_factors[i];
        const double frequency =
            std::pow(static_cast<double>(model.rope_base), -2.0 * i / model.rotary_dim) / factor;
        cos_.push_back(std::cos(position * frequency));
        sin_.push_back(std::sin(position * frequency));
      }
  }

  // Ours to theirs, row `r` of the positions. In place; `turned`: by the position, else reordered alone.
  void to_theirs(float* key, int r, bool turned) const {
    read_pairs(key, interleaved_);
    turn(r, turned ? 1 : 0);
    write_pairs(key, false);
  }
  void to_ours(float* key, int r, bool turned, bool interleaved) const {
    read_pairs(key, interleaved);
    turn(r, turned ? -1 : 0);
    write_pairs(key, interleaved_);
  }

 private:
  void read_pairs(const float* key, bool interleaved) const {
    first_.resize(static_cast<size_t>(pairs_));
    second_.resize(static_cast<size_t>(pairs_));
    for (int i = 0; i < pairs_; ++i) {
      first_[i] = key[interleaved ? 2 * i : i];
      second_[i] = key[interleaved ? 2 * i + 1 : i + pairs_];
    }
  }
  void write_pairs(float* key, bool interleaved) const {
    for (int i = 0; i < pairs_; ++i) {
      key[interleaved ? 2 * i : i] = static_cast<float>(first_[i]);
      key[interleaved ? 2 * i + 1 : i + pairs_] = static_cast<float>(second_[i]);
    }
  }
  void turn(int r, int direction) const {
    if (direction == 0) return;
    for (int i = 0; i < pairs_; ++i) {
      const double c = cos_[static_cast<size_t>(r) * pairs_ + i];
      const double s = direction * sin_[static_cast<size_t>(r) * pairs_ + i];
      const double x = first_[i];
      first_[i] = x * c - second_[i] * s;
      second_[i] = x * s + second_[i] * c;
    }
  }

  int pairs_;
  bool interleaved_;
  std::vector<double> cos_, sin_;               // [rows][pairs]
  mutable std::vector<double> first_, second_;  // the pairs of the key at hand
};

// The values of a tensor as f32.
std::vector<float> to_f32(const SafetensorsTensor& tensor) {
  const auto element = static_cast<size_t>(safetensors_element_bytes(tensor.dtype));
  std::vector<float> out(tensor.bytes.size() / element);
  if (out.empty()) return out;
  if (tensor.dtype == "F32") {
    std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
    return out;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, tensor.bytes.data() + i * element, sizeof bits);
    out[i] = tensor.dtype == "F16" ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
  return out;
}

class Importer {
 public:
  Importer(const std::string& path, SafetensorsFile file, const CacheModelInfo& model,
           const CacheShape& shape)
      : file_(std::move(file)), meta_(path, file_.metadata), model_(model), shape_(shape) {}
  Importer(const Importer&) = delete;
  Importer& operator=(const Importer&) = delete;

  Result<KvCache> read(const std::shared_ptr<PagePool>& pool) {
    KVFOLD_RETURN_IF_ERROR(read_metadata());
    KVFOLD_RETURN_IF_ERROR(check_tensors());
    const size_t pages = size_t{2} * shape_.lanes() * pages_of_rows(rows_->size());
    KVFOLD_RETURN_IF_ERROR(pool->require(pages).with_prefix(meta_.path() + ": "));
    const KeyTurner turner(model_, rows_->positions);
    KvLanes lanes(pool, shape_);
    for (const Part part : kParts)
      for (int layer = 0; layer < shape_.layers; ++layer) {
        const std::vector<float> values = to_f32(file_.tensors.at(tensor_name(part, layer)));
        const auto bad =
            std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
        if (bad != values.end())
          return meta_.fail(fmt::format("tensor '{}': element {} is {}, expected a number",
                                        tensor_name(part, layer), bad - values.begin(), *bad));
        KVFOLD_RETURN_IF_ERROR(store_layer(part, layer, values, turner, lanes));
      }
    return KvCache(std::move(lanes), rows_, next_position_);
  }

 private:
  Status read_metadata() {
    if (meta_.has("kvfold_format"))
      return meta_.fail(
          "a cache file of kvfold, which needs no import; expected one that another tool wrote");
    KVFOLD_ASSIGN_OR_RETURN(rows_->tokens, meta_.integers("tokens", 0, INT32_MAX));
    const size_t count = rows_->tokens.size();
    rows_->positions.resize(count);
    std::iota(rows_->positions.begin(), rows_->positions.end(), 0);
    if (meta_.has("positions")) {
      KVFOLD_ASSIGN_OR_RETURN(rows_->positions, meta_.integers("positions", -kMostPosition, kMostPosition));
    }
    if (rows_->positions.size() != count)
      return meta_.fail(fmt::format("metadata 'positions': found {} elements for {} tokens",
                                    rows_->positions.size(), count));
    for (const int32_t position : rows_->positions) next_position_ = std::max(next_position_, position + 1);
    if (meta_.has("next_position")) {
      KVFOLD_ASSIGN_OR_RETURN(const int64_t next,
                              meta_.integer("next_position", -kMostPosition, kMostPosition));
      next_position_ = static_cast<int32_t>(next);
    }
    if (meta_.has("keys_rotated")) {
      KVFOLD_ASSIGN_OR_RETURN(const auto rotated,
                              meta_.one_of("keys_rotated", std::array{true, false}, bool_name));
      rotated_ = rotated;
    }
    if (meta_.has("rope_pairing")) {
      KVFOLD_ASSIGN_OR_RETURN(
          const RopePairing pairing,
          meta_.one_of("rope_pairing", std::array{RopePairing::kInterleaved, RopePairing::kHalfSplit},
                       pairing_name));
      interleaved_ = pairing == RopePairing::kInterleaved;
    }
    KVFOLD_RETURN_IF_ERROR(check_rope());
    const int32_t source = rows_->source_index(std::filesystem::path(meta_.path()).filename().string());
    for (size_t i = 0; i < count; ++i) rows_->origins.push_back({source, static_cast<int32_t>(i), 0});
    return {};
  }

  // Keys that were turned are turned back by the model's angles: where the file says by which it turned them,
  // they are the same.
  Status check_rope() const {
    if (!rotated_) return {};
    for (const auto& [key, wanted] : {std::pair{"rope_base", static_cast<double>(model_.rope_base)},
                                      std::pair{"rotary_dim", static_cast<double>(model_.rotary_dim)}}) {
      if (!meta_.has(key)) continue;
      KVFOLD_ASSIGN_OR_RETURN(const nlohmann::json found, meta_.parsed(key));
      constexpr double kRounding = 1e-6;  // of an f32, however many digits it was written with
      if (!found.is_number() || std::abs(found.get<double>() - wanted) > kRounding * wanted)
        return meta_.fail(fmt::format("metadata '{}': found '{}', expected {}, as the model has it", key,
                                      printable(dump_json(found)), wanted));
    }
    return {};
  }

  // Every layer's K and V, and no other layer.
  Status check_tensors() const {
    for (const Part part : kParts)
      for (int layer = 0; layer < shape_.layers; ++layer) {
        const std::string name = tensor_name(part, layer);
        const auto at = file_.tensors.find(name);
        if (at == file_.tensors.end()) return meta_.fail(fmt::format("tensor '{}' is missing", name));
        const SafetensorsTensor& tensor = at->second;
        if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16")
          return meta_.fail(
              fmt::format("tensor '{}': found {}, expected F32, F16 or BF16", name, tensor.dtype));
        const std::vector<int64_t> wanted = {shape_.kv_heads, rows_->size(), shape_.head_dim};
        std::vector<int64_t> found = tensor.shape;
        if (found.size() == 4 && found[0] == 1) found.erase(found.begin());
        if (found != wanted)
          return meta_.fail(
              fmt::format("tensor '{}': found the shape {}, expected {}: KV heads, rows, head_dim", name,
                          dump_json(tensor.shape), dump_json(wanted)));
      }
    const size_t expected = size_t{2} * shape_.layers;
    if (file_.tensors.size() != expected)
      return meta_.fail(fmt::format("found {} tensors, expected {}, a K and a V for each of {} layers",
                                    file_.tensors.size(), expected, shape_.layers));
    return {};
  }

  Status store_layer(Part part, int layer, const std::vector<float>& values, const KeyTurner& turner,
                     KvLanes& lanes) const {
    LaneMatrix m{rows_->size(), shape_.head_dim, {}, {}};
    m.slots.resize(static_cast<size_t>(m.rows));
    std::iota(m.slots.begin(), m.slots.end(), 0);
    const size_t size = static_cast<size_t>(m.rows) * m.columns;
    for (int head = 0; head < shape_.kv_heads; ++head) {
      const float* const begin = values.data() + head * size;
      m.data.assign(begin, begin + size);
      if (part == Part::kKey)
        for (int r = 0; r < m.rows; ++r) turner.to_ours(m.row(r), r, rotated_, interleaved_);
      KVFOLD_RETURN_IF_ERROR(
          store_lane(lanes, part, shape_.lane(layer, head), m)
              .with_prefix(fmt::format("{}: tensor '{}': ", meta_.path(), tensor_name(part, layer))));
    }
    return {};
  }

  static const char* bool_name(bool value) { return value ? "true" : "false"; }

  SafetensorsFile file_;
  MetadataReader meta_;
  CacheModelInfo model_;
  CacheShape shape_;
  std::shared_ptr<Rows> rows_ = std::make_shared<Rows>();
  int32_t next_position_ = 0;
  bool rotated_ = true;
  bool interleaved_ = false;
};

std::map<std::string, std::string> export_metadata(const KvCache& cache, const CacheModelInfo& model,
                                                   bool rotated) {
  return {{"kvfold_export", "1"},
          {"model_fingerprint", to_utf8(model.fingerprint)},
          {"architecture", to_utf8(model.architecture)},
          {"model_name", to_utf8(model.name)},
          {"rope_base", fmt::format("{}", model.rope_base)},
          {"rope_pairing", pairing_name(RopePairing::kHalfSplit)},
          {"rotary_dim", std::to_string(model.rotary_dim)},
          {"keys_rotated", rotated ? "true" : "false"},
          {"layers", std::to_string(cache.shape().layers)},
          {"kv_heads", std::to_string(cache.shape().kv_heads)},
          {"head_dim", std::to_string(cache.shape().head_dim)},
          {"rows", std::to_string(cache.size())},
          {"next_position", std::to_string(cache.next_position())},
          {"tokens", dump_json(cache.rows().tokens)},
          {"positions", dump_json(cache.rows().positions)}};
}

}  // namespace

Status export_cache(const KvCache& cache, const CacheModelInfo& model, bool rotated,
                    const std::string& path) {
  const CacheShape& shape = cache.shape();
  for (int lane = 0; lane < shape.lanes(); ++lane) {
    const int held = cache.lanes().table(Part::kKey, lane).rows();
    if (held != cache.size())
      return Status::error(
          fmt::format("export: layer {} head {} holds {} of {} rows; other tools have no word for that",
                      lane / shape.kv_heads, lane % shape.kv_heads, held, cache.size()));
  }
  const KeyTurner turner(model, cache.rows().positions);
  std::vector<float> values;
  std::vector<SafetensorsEntry> entries;
  for (const Part part : kParts)
    for (int layer = 0; layer < shape.layers; ++layer)
      entries.push_back(
          {tensor_name(part, layer), "F32", {shape.kv_heads, cache.size(), shape.head_dim}, [&, part, layer] {
             values.clear();
             for (int head = 0; head < shape.kv_heads; ++head) {
               LaneMatrix m = load_lane(cache.lanes(), part, shape.lane(layer, head));
               for (int r = 0; part == Part::kKey && r < m.rows; ++r) turner.to_theirs(m.row(r), r, rotated);
               values.insert(values.end(), m.data.begin(), m.data.end());
             }
             return std::as_bytes(std::span<const float>(values));
           }});
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(write_safetensors(file, export_metadata(cache, model, rotated), entries));
  KVFOLD_RETURN_IF_ERROR(cache.pool()->status());
  return file.commit();
}

Result<KvCache> import_cache(const std::string& path, const CacheModelInfo& model, const CacheShape& shape,
                             const std::shared_ptr<PagePool>& pool) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  return import_cache(*map, model, shape, pool);
}

Result<KvCache> import_cache(const MappedFile& file, const CacheModelInfo& model, const CacheShape& shape,
                             const std::shared_ptr<PagePool>& pool) {
  KVFOLD_ASSIGN_OR_RETURN(SafetensorsFile parsed, parse_safetensors(file.bytes(), file.path()));
  return Importer(file.path(), std::move(parsed), model, shape).read(pool);
}

}  // namespace kvfold
