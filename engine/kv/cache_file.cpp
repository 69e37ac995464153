#include "engine/kv/cache_file.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <array>
#include <cstring>
#include <deque>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/safetensors.h"

namespace kvfold {
namespace {

using nlohmann::json;
constexpr std::array kParts = {Part::kKey, Part::kValue};
constexpr int32_t kMostPosition = INT32_MAX / 2;

const char* type_name(CacheType type) {
  return type == CacheType::kF16 ? "f16" : type == CacheType::kF32 ? "f32" : "q8";
}
const char* element_dtype(CacheType type) {
  return type == CacheType::kF16 ? "F16" : type == CacheType::kF32 ? "F32" : "I8";
}
size_t element_bytes(CacheType type) { return type == CacheType::kF16 ? 2 : type == CacheType::kF32 ? 4 : 1; }
const char* pairing_name(RopePairing pairing) {
  return pairing == RopePairing::kInterleaved ? "interleaved" : "half-split";
}
std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }
std::string checksum(std::span<const std::byte> bytes) { return hex(XXH3_64bits(bytes.data(), bytes.size())); }

// Rows of a lane as they lie in the file, [rows][head_dim] of the page's own elements, and for q8 [rows][groups] scales.
struct Dense {
  std::byte* elements;
  float* scales;  // null unless q8
};

// Copies `count` rows between a page (from row `first` on) and dense rows; bits only. `to_page` says which way.
template <class T>
void move_elements(Part part, int head_dim, T* page, int first, int count, T* rows, bool to_page) {
  for (int d = 0; d < head_dim; ++d)
    for (int r = 0; r < count; ++r) {
      T& in_page = page[kv_index(part, head_dim, first + r, d)];
      T& in_rows = rows[static_cast<size_t>(r) * head_dim + d];
      if (to_page) {
        in_page = in_rows;
      } else {
        in_rows = in_page;
      }
    }
}

void move_rows(CacheType type, Part part, int head_dim, std::byte* page, int first, int count, const Dense& dense,
               int64_t row, bool to_page) {
  std::byte* rows = dense.elements + static_cast<size_t>(row) * head_dim * element_bytes(type);
  switch (type) {
    case CacheType::kF16:
      return move_elements(part, head_dim, reinterpret_cast<uint16_t*>(page), first, count,
                           reinterpret_cast<uint16_t*>(rows), to_page);
    case CacheType::kF32:
      return move_elements(part, head_dim, reinterpret_cast<uint32_t*>(page), first, count,
                           reinterpret_cast<uint32_t*>(rows), to_page);
    case CacheType::kQ8: break;
  }
  move_elements(part, head_dim, reinterpret_cast<uint8_t*>(page), first, count, reinterpret_cast<uint8_t*>(rows), to_page);
  auto* scales = reinterpret_cast<float*>(page + static_cast<size_t>(head_dim) * kPageRows);
  const int groups = kv_scale_groups(head_dim);
  for (int r = 0; r < count; ++r)
    for (int g = 0; g < groups; ++g) {
      float& in_page = scales[kv_scale_index(part, head_dim, first + r, g)];
      float& in_rows = dense.scales[(row + r) * groups + g];
      if (to_page) {
        in_page = in_rows;
      } else {
        in_rows = in_page;
      }
    }
}

// The tensors of one K or V: a layer's lanes together where they all hold every row, else each lane by itself.
struct TensorPlan {
  std::string name;
  std::vector<int> lanes;
  int64_t rows;  // of each lane
  std::vector<int64_t> shape(int columns) const {
    if (single) return {rows, columns};
    return {static_cast<int64_t>(lanes.size()), rows, columns};
  }
  bool single;
};

const char* part_name(Part part) { return part == Part::kKey ? "k" : "v"; }

// How many rows each lane holds decides the names; `lane_rows` is by lane.
std::vector<TensorPlan> plan_tensors(const CacheShape& shape, Part part, std::span<const int64_t> lane_rows, int64_t rows) {
  std::vector<TensorPlan> plans;
  for (int layer = 0; layer < shape.layers; ++layer) {
    bool uniform = true;
    for (int head = 0; head < shape.kv_heads; ++head) uniform &= lane_rows[shape.lane(layer, head)] == rows;
    if (uniform) {
      std::vector<int> lanes(shape.kv_heads);
      std::iota(lanes.begin(), lanes.end(), shape.lane(layer, 0));
      plans.push_back({fmt::format("layers.{}.{}", layer, part_name(part)), lanes, rows, false});
      continue;
    }
    for (int head = 0; head < shape.kv_heads; ++head) {
      const int lane = shape.lane(layer, head);
      plans.push_back({fmt::format("layers.{}.heads.{}.{}", layer, head, part_name(part)), {lane}, lane_rows[lane], true});
    }
  }
  return plans;
}

std::vector<int32_t> lane_slots(const PageTable& table) {
  std::vector<int32_t> slots;
  for (const KvSpan& span : table.spans())
    for (int i = 0; i < span.count; ++i) slots.push_back(span.slot + i);
  return slots;
}

class Writer {
 public:
  explicit Writer(const KvCache& cache) : cache_(cache), shape_(cache.shape()) {}

  Status write(const CacheModelInfo& model, AtomicFile& file) {
    std::vector<int64_t> lane_rows;
    for (int lane = 0; lane < shape_.lanes(); ++lane)
      lane_rows.push_back(cache_.lanes().table(Part::kKey, lane).rows());
    json slots = json::object();
    for (int lane = 0; lane < shape_.lanes(); ++lane)
      if (lane_rows[lane] != cache_.size())
        slots[fmt::format("{}.{}", lane / shape_.kv_heads, lane % shape_.kv_heads)] =
            lane_slots(cache_.lanes().table(Part::kKey, lane));
    for (const Part part : kParts)
      for (const TensorPlan& plan : plan_tensors(shape_, part, lane_rows, cache_.size())) gather(part, plan);
    std::map<std::string, std::string> metadata = describe(model);
    metadata["slots"] = slots.dump();
    json checksums = json::object();
    for (const SafetensorsEntry& entry : entries_) checksums[entry.name] = checksum(entry.bytes);
    metadata["checksums"] = checksums.dump();
    std::string all;
    for (const auto& [key, value] : metadata) all += key + "=" + value + "\n";
    metadata["checksum"] = checksum(std::as_bytes(std::span(all)));
    return write_safetensors(file, metadata, entries_);
  }

 private:
  void gather(Part part, const TensorPlan& plan) {
    const CacheType type = cache_.type();
    const int head_dim = shape_.head_dim;
    const int groups = kv_scale_groups(head_dim);
    const size_t rows = static_cast<size_t>(plan.rows) * plan.lanes.size();
    std::vector<std::byte>& elements = buffers_.emplace_back(rows * head_dim * element_bytes(type));
    std::vector<std::byte>& scales = buffers_.emplace_back(type == CacheType::kQ8 ? rows * groups * sizeof(float) : 0);
    const Dense dense{elements.data(), reinterpret_cast<float*>(scales.data())};
    int64_t row = 0;
    for (const int lane : plan.lanes)
      for (const KvSpan& span : cache_.lanes().table(part, lane).spans()) {
        move_rows(type, part, head_dim, cache_.pool()->data(span.page), span.first, span.count, dense, row, false);
        row += span.count;
      }
    entries_.push_back({plan.name, element_dtype(type), plan.shape(head_dim), elements});
    if (type == CacheType::kQ8) entries_.push_back({plan.name + "_scales", "F32", plan.shape(groups), scales});
  }

  std::map<std::string, std::string> describe(const CacheModelInfo& model) const {
    const Rows& rows = cache_.rows();
    json origins = json::array();
    for (const Origin& o : rows.origins) origins.push_back({o.source, o.row, operation_names(o.operations)});
    return {{"kvfold_format", std::to_string(kCacheFileVersion)},
            {"model_fingerprint", model.fingerprint},
            {"architecture", model.architecture},
            {"model_name", model.name},
            {"rope_base", fmt::format("{}", model.rope_base)},
            {"rope_pairing", pairing_name(model.rope_pairing)},
            {"rotary_dim", std::to_string(model.rotary_dim)},
            {"keys_rotated", "false"},
            {"dtype", type_name(cache_.type())},
            {"layers", std::to_string(shape_.layers)},
            {"kv_heads", std::to_string(shape_.kv_heads)},
            {"head_dim", std::to_string(shape_.head_dim)},
            {"rows", std::to_string(cache_.size())},
            {"next_position", std::to_string(cache_.next_position())},
            {"tokens", json(rows.tokens).dump()},
            {"positions", json(rows.positions).dump()},
            {"origins", origins.dump()},
            {"sources", json(rows.sources).dump(-1, ' ', false, json::error_handler_t::replace)}};
  }

  const KvCache& cache_;
  const CacheShape shape_;
  std::deque<std::vector<std::byte>> buffers_;  // a deque: what the entries point into stays where it is
  std::vector<SafetensorsEntry> entries_;
};

class Reader {
 public:
  Reader(std::string path, SafetensorsFile file) : path_(std::move(path)), file_(std::move(file)) {}

  Result<KvCache> read(const CacheModelInfo& model, const CacheShape& shape, const std::shared_ptr<PagePool>& pool) {
    shape_ = shape;
    KVFOLD_RETURN_IF_ERROR(check_version());
    KVFOLD_RETURN_IF_ERROR(check_metadata());
    KVFOLD_RETURN_IF_ERROR(check_model(model, pool->type()));
    KVFOLD_RETURN_IF_ERROR(read_rows());
    KVFOLD_RETURN_IF_ERROR(read_slots());
    KVFOLD_RETURN_IF_ERROR(check_tensors(pool->type()));
    KVFOLD_RETURN_IF_ERROR(require_pages(*pool));
    KvLanes lanes(pool, shape_);
    for (const Part part : kParts)
      for (const TensorPlan& plan : plan_tensors(shape_, part, lane_rows_, rows_->size())) scatter(part, plan, lanes);
    return KvCache(std::move(lanes), rows_, next_position_);
  }

 private:
  Status fail(const std::string& message) const { return Status::error(path_ + ": " + message); }

  Result<std::string> text(const std::string& key) const {
    const auto at = file_.metadata.find(key);
    if (at == file_.metadata.end()) return fail(fmt::format("metadata key '{}' is missing", key));
    return at->second;
  }

  Result<int64_t> integer(const std::string& key, int64_t least, int64_t most) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string value, text(key));
    const json number = json::parse(value, nullptr, false);
    if (!number.is_number_integer() || number.get<int64_t>() < least || number.get<int64_t>() > most)
      return fail(fmt::format("metadata '{}': found '{}', expected an integer in [{}, {}]", key, value.substr(0, 40), least,
                              most));
    return number.get<int64_t>();
  }

  // A JSON list of integers in [least, most].
  Status integers(const std::string& what, const json& list, int64_t least, int64_t most, std::vector<int32_t>& out) const {
    if (!list.is_array()) return fail(fmt::format("metadata '{}': expected a list of integers", what));
    for (const json& x : list) {
      if (!x.is_number_integer() || x.get<int64_t>() < least || x.get<int64_t>() > most)
        return fail(fmt::format("metadata '{}': element {}: expected an integer in [{}, {}]", what, out.size(), least, most));
      out.push_back(x.get<int32_t>());
    }
    return {};
  }

  Result<json> list(const std::string& key) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string value, text(key));
    json parsed = json::parse(value, nullptr, false);
    if (parsed.is_discarded()) return fail(fmt::format("metadata '{}': expected JSON", key));
    return parsed;
  }

  Status check_version() const {
    if (!file_.metadata.contains("kvfold_format"))
      return fail("no metadata 'kvfold_format': expected a cache file of kvfold");
    KVFOLD_ASSIGN_OR_RETURN(const int64_t version, integer("kvfold_format", 0, INT32_MAX));
    if (version != kCacheFileVersion)
      return fail(fmt::format("cache format version {}: expected {}", version, kCacheFileVersion));
    return {};
  }

  Status check_metadata() const {
    std::string all;
    for (const auto& [key, value] : file_.metadata)
      if (key != "checksum") all += key + "=" + value + "\n";
    KVFOLD_ASSIGN_OR_RETURN(const std::string wanted, text("checksum"));
    const std::string found = checksum(std::as_bytes(std::span(all)));
    if (found != wanted) return fail(fmt::format("metadata is damaged: checksum {}, expected {}", found, wanted));
    return {};
  }

  Status check_model(const CacheModelInfo& model, CacheType type) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string fingerprint, text("model_fingerprint"));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t layers, integer("layers", 1, 1 << 20));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t heads, integer("kv_heads", 1, 1 << 20));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t dim, integer("head_dim", 1, 1 << 20));
    if (fingerprint != model.fingerprint || layers != shape_.layers || heads != shape_.kv_heads || dim != shape_.head_dim) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string name, text("model_name"));
      return fail(fmt::format("the cache is of another model: found '{}' ({}), {} layers x {} KV heads x {}; expected '{}' ({}), "
                              "{} x {} x {}",
                              name, fingerprint, layers, heads, dim, model.name, model.fingerprint, shape_.layers,
                              shape_.kv_heads, shape_.head_dim));
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::string rotated, text("keys_rotated"));
    if (rotated != "false") return fail(fmt::format("keys_rotated: found '{}', expected false: keys before RoPE", rotated));
    KVFOLD_ASSIGN_OR_RETURN(const std::string dtype, text("dtype"));
    if (dtype != type_name(type))
      return fail(fmt::format("found pages of type {}, expected {} (--cache-type)", dtype, type_name(type)));
    return {};
  }

  Status read_rows() {
    KVFOLD_ASSIGN_OR_RETURN(const int64_t count, integer("rows", 0, INT32_MAX / 2));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t next, integer("next_position", -kMostPosition, kMostPosition));
    next_position_ = static_cast<int32_t>(next);
    KVFOLD_ASSIGN_OR_RETURN(const json tokens, list("tokens"));
    KVFOLD_RETURN_IF_ERROR(integers("tokens", tokens, 0, INT32_MAX, rows_->tokens));
    KVFOLD_ASSIGN_OR_RETURN(const json positions, list("positions"));
    KVFOLD_RETURN_IF_ERROR(integers("positions", positions, -kMostPosition, kMostPosition, rows_->positions));
    KVFOLD_RETURN_IF_ERROR(read_origins());
    for (const auto& [what, size] : {std::pair{"tokens", rows_->tokens.size()},
                                     std::pair{"positions", rows_->positions.size()},
                                     std::pair{"origins", rows_->origins.size()}})
      if (static_cast<int64_t>(size) != count)
        return fail(fmt::format("metadata '{}': found {} elements, expected {}, one a row", what, size, count));
    return {};
  }

  Status read_origins() {
    KVFOLD_ASSIGN_OR_RETURN(const json sources, list("sources"));
    if (!sources.is_array() || sources.empty()) return fail("metadata 'sources': expected a list of names");
    rows_->sources.clear();
    for (const json& name : sources) {
      if (!name.is_string()) return fail("metadata 'sources': expected a list of names");
      rows_->sources.push_back(name.get<std::string>());
    }
    KVFOLD_ASSIGN_OR_RETURN(const json origins, list("origins"));
    if (!origins.is_array()) return fail("metadata 'origins': expected a list");
    const auto most = static_cast<int64_t>(rows_->sources.size()) - 1;
    for (const json& o : origins) {
      const bool whole = o.is_array() && o.size() == 3 && o[0].is_number_integer() && o[1].is_number_integer() &&
                         o[2].is_string() && o[0].get<int64_t>() >= 0 && o[0].get<int64_t>() <= most &&
                         o[1].get<int64_t>() >= 0 && o[1].get<int64_t>() <= INT32_MAX;
      if (!whole)
        return fail(fmt::format("metadata 'origins': element {}: expected [source, row, operations]", rows_->origins.size()));
      rows_->origins.push_back({o[0].get<int32_t>(), o[1].get<int32_t>(), parse_operation_names(o[2].get<std::string>())});
    }
    return {};
  }

  Status read_slots() {
    KVFOLD_ASSIGN_OR_RETURN(const json slots, list("slots"));
    if (!slots.is_object()) return fail("metadata 'slots': expected an object");
    const int rows = rows_->size();
    size_t used = 0;
    for (int lane = 0; lane < shape_.lanes(); ++lane) {
      const auto at = slots.find(fmt::format("{}.{}", lane / shape_.kv_heads, lane % shape_.kv_heads));
      std::vector<int32_t>& out = slots_.emplace_back();
      if (at == slots.end()) {
        out.resize(rows);
        std::iota(out.begin(), out.end(), 0);
      } else {
        ++used;
        KVFOLD_RETURN_IF_ERROR(integers("slots", *at, 0, rows - 1, out));
        for (size_t i = 1; i < out.size(); ++i)
          if (out[i] <= out[i - 1]) return fail(fmt::format("metadata 'slots': '{}': expected increasing slots", at.key()));
      }
      lane_rows_.push_back(static_cast<int64_t>(out.size()));
    }
    if (used != slots.size()) return fail("metadata 'slots': names a lane that the model lacks");
    return {};
  }

  // Every tensor of the plan is there, with the right dtype, shape and checksum, and no other.
  Status check_tensors(CacheType type) const {
    KVFOLD_ASSIGN_OR_RETURN(const json checksums, list("checksums"));
    size_t expected = 0;
    for (const Part part : kParts)
      for (const TensorPlan& plan : plan_tensors(shape_, part, lane_rows_, rows_->size())) {
        KVFOLD_RETURN_IF_ERROR(check_tensor(plan.name, element_dtype(type), plan.shape(shape_.head_dim), checksums));
        ++expected;
        if (type != CacheType::kQ8) continue;
        KVFOLD_RETURN_IF_ERROR(
            check_tensor(plan.name + "_scales", "F32", plan.shape(kv_scale_groups(shape_.head_dim)), checksums));
        ++expected;
      }
    if (expected != file_.tensors.size())
      return fail(fmt::format("found {} tensors, expected {}", file_.tensors.size(), expected));
    return {};
  }

  Status check_tensor(const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
                      const json& checksums) const {
    const auto at = file_.tensors.find(name);
    if (at == file_.tensors.end()) return fail(fmt::format("tensor '{}' is missing", name));
    const SafetensorsTensor& tensor = at->second;
    if (tensor.dtype != dtype || tensor.shape != shape)
      return fail(fmt::format("tensor '{}': found {} {}, expected {} {}", name, tensor.dtype, json(tensor.shape).dump(), dtype,
                              json(shape).dump()));
    const std::string wanted = checksums.is_object() && checksums.contains(name) && checksums[name].is_string()
                                   ? checksums[name].get<std::string>()
                                   : "none";
    const std::string found = checksum(tensor.bytes);
    if (found != wanted) return fail(fmt::format("tensor '{}' is damaged: checksum {}, expected {}", name, found, wanted));
    return {};
  }

  Status require_pages(const PagePool& pool) const {
    size_t pages = 0;
    for (const int64_t rows : lane_rows_) pages += 2 * ((static_cast<size_t>(rows) + kPageRows - 1) / kPageRows);
    return pool.require(pages).with_prefix(path_ + ": ");
  }

  void scatter(Part part, const TensorPlan& plan, KvLanes& lanes) const {
    const std::shared_ptr<PagePool>& pool = lanes.pool();
    // move_rows moves either way and so takes pointers to writable rows; into a page it only reads them.
    auto* elements = const_cast<std::byte*>(file_.tensors.at(plan.name).bytes.data());
    std::vector<float> scales;
    if (pool->type() == CacheType::kQ8) {
      const std::span<const std::byte> bytes = file_.tensors.at(plan.name + "_scales").bytes;
      scales.resize(bytes.size() / sizeof(float));
      if (!bytes.empty()) std::memcpy(scales.data(), bytes.data(), bytes.size());
    }
    const Dense dense{elements, scales.data()};
    int64_t row = 0;
    for (const int lane : plan.lanes) {
      PageTable& table = lanes.mutable_table(part, lane);
      const std::vector<int32_t>& slots = slots_[lane];
      for (size_t i = 0; i < slots.size();) {
        // One page at a time: the first row's place is where the page begins.
        const PageTable::RowPlace place = table.extend(part, slots[i]);
        size_t n = 1;
        while (i + n < slots.size() && slots[i + n] == slots[i] + static_cast<int>(n) &&
               place.row + static_cast<int>(n) < kPageRows) {
          table.extend(part, slots[i + n]);
          ++n;
        }
        move_rows(pool->type(), part, shape_.head_dim, place.page, place.row, static_cast<int>(n), dense, row, true);
        row += static_cast<int64_t>(n);
        i += n;
      }
    }
  }

  std::string path_;
  SafetensorsFile file_;
  CacheShape shape_;
  std::shared_ptr<Rows> rows_ = std::make_shared<Rows>();
  int32_t next_position_ = 0;
  std::vector<std::vector<int32_t>> slots_;  // by lane
  std::vector<int64_t> lane_rows_;           // by lane
};

}  // namespace

Status save_cache(const KvCache& cache, const CacheModelInfo& model, const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(Writer(cache).write(model, file));
  return file.commit();
}

Result<KvCache> load_cache(const std::string& path, const CacheModelInfo& model, const CacheShape& shape,
                           const std::shared_ptr<PagePool>& pool) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  KVFOLD_ASSIGN_OR_RETURN(SafetensorsFile file, parse_safetensors(map->bytes(), path));
  return Reader(path, std::move(file)).read(model, shape, pool);
}

}  // namespace kvfold
