#include "engine/kv/cache_file.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "engine/kv/dense_rows.h"
#include "engine/printable.h"
#include "engine/safetensors.h"

namespace kvfold {
namespace {

using nlohmann::json;
constexpr std::array kParts = {Part::kKey, Part::kValue};

const char* type_name(CacheType type) {
  return type == CacheType::kF16 ? "f16" : type == CacheType::kF32 ? "f32" : "q8";
}
const char* element_dtype(CacheType type) {
  return type == CacheType::kF16 ? "F16" : type == CacheType::kF32 ? "F32" : "I8";
}
const char* pairing_name(RopePairing pairing) {
  return pairing == RopePairing::kInterleaved ? "interleaved" : "half-split";
}
std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }
std::string checksum(std::span<const std::byte> bytes) {
  return hex(XXH3_64bits(bytes.data(), bytes.size()));
}

// JSON text; what is not UTF-8 (a model's name or a path may hold anything) is replaced by U+FFFD.
std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }
std::string utf8(const std::string& text) { return json::parse(dump(text)).get<std::string>(); }

// The deepest JSON text of a cache file is a list of lists: deeper ones are refused before memory is spent on
// them.
bool is_shallow(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > 2) return false;
  }
  return true;
}

bool is_integer_in(const json& value, int64_t least, int64_t most) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return false;
  return least <= value.get<int64_t>() && value.get<int64_t>() <= most;
}

// The tensors of one K or V: a layer's lanes together where they all hold every row, else each lane by
// itself.
struct TensorPlan {
  std::string name;
  std::vector<int> lanes;
  int64_t rows;  // of each lane
  bool single;   // one lane by itself
  std::vector<int64_t> shape(int columns) const {
    if (single) return {rows, columns};
    return {static_cast<int64_t>(lanes.size()), rows, columns};
  }
};

const char* part_name(Part part) { return part == Part::kKey ? "k" : "v"; }

// How many rows each lane holds decides the names; `lane_rows` is by lane.
std::vector<TensorPlan> plan_tensors(const CacheShape& shape, Part part, std::span<const int64_t> lane_rows,
                                     int64_t rows) {
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
      plans.push_back({fmt::format("layers.{}.heads.{}.{}", layer, head, part_name(part)),
                       {lane},
                       lane_rows[lane],
                       true});
    }
  }
  return plans;
}

// The key of a lane in the metadata's "slots".
std::string lane_name(const CacheShape& shape, int lane) {
  return fmt::format("{}.{}", lane / shape.kv_heads, lane % shape.kv_heads);
}

// Over everything in the metadata but itself.
std::string metadata_checksum(const std::map<std::string, std::string>& metadata) {
  std::string all;
  for (const auto& [key, value] : metadata)
    if (key != "checksum") all += key + "=" + value + "\n";
  return checksum(std::as_bytes(std::span(all)));
}

std::vector<int32_t> lane_slots(const PageTable& table) {
  std::vector<int32_t> slots;
  for (const KvSpan& span : table.spans())
    for (int i = 0; i < span.count; ++i) slots.push_back(span.slot + i);
  return slots;
}

// Makes the dense rows of one tensor at a time, once for its checksum and once for the file: a second copy of
// the whole cache would cost as much time, and its memory.
class Writer {
 public:
  explicit Writer(const KvCache& cache) : cache_(cache), shape_(cache.shape()) {}

  Status write(const CacheModelInfo& model, AtomicFile& file) {
    std::vector<int64_t> lane_rows;
    json slots = json::object();
    for (int lane = 0; lane < shape_.lanes(); ++lane) {
      const PageTable& table = cache_.lanes().table(Part::kKey, lane);
      lane_rows.push_back(table.rows());
      if (table.rows() != cache_.size()) slots[lane_name(shape_, lane)] = lane_slots(table);
    }
    std::map<std::string, std::string> metadata = describe(model);
    metadata["slots"] = dump(slots);
    std::vector<SafetensorsEntry> entries;
    json checksums = json::object();
    for (const Part part : kParts)
      for (const TensorPlan& plan : plan_tensors(shape_, part, lane_rows, cache_.size()))
        add_entries(part, plan, entries, checksums);
    metadata["checksums"] = dump(checksums);
    metadata["checksum"] = metadata_checksum(metadata);
    return write_safetensors(file, metadata, entries);
  }

 private:
  // The tensor, and for q8 behind it that of its scales, which gather() of the tensor makes too.
  void add_entries(Part part, const TensorPlan& plan, std::vector<SafetensorsEntry>& entries,
                   json& checksums) {
    const CacheType type = cache_.type();
    gather(part, plan);
    checksums[plan.name] = checksum(elements_);
    entries.push_back({plan.name, element_dtype(type), plan.shape(shape_.head_dim), [this, part, plan] {
                         gather(part, plan);
                         return std::span<const std::byte>(elements_);
                       }});
    if (type != CacheType::kQ8) return;
    const std::string name = plan.name + "_scales";
    checksums[name] = checksum(scales_);
    entries.push_back({name, "F32", plan.shape(kv_scale_groups(shape_.head_dim)),
                       [this] { return std::span<const std::byte>(scales_); }});
  }

  // Fills elements_ and, for q8, scales_.
  void gather(Part part, const TensorPlan& plan) {
    const CacheType type = cache_.type();
    const size_t row_bytes = shape_.head_dim * element_bytes(type);
    const size_t scale_bytes = type == CacheType::kQ8 ? kv_scale_groups(shape_.head_dim) * sizeof(float) : 0;
    elements_.resize(plan.rows * plan.lanes.size() * row_bytes);
    scales_.resize(plan.rows * plan.lanes.size() * scale_bytes);
    size_t row = 0;
    for (const int lane : plan.lanes)
      for (const KvSpan& span : cache_.lanes().table(part, lane).spans()) {
        page_to_dense(type, part, shape_.head_dim, cache_.pool()->read(span.page), span.first, span.count,
                      elements_.data() + row * row_bytes, scales_.data() + row * scale_bytes);
        row += span.count;
      }
  }

  std::map<std::string, std::string> describe(const CacheModelInfo& model) const {
    const Rows& rows = cache_.rows();
    json origins = json::array();
    for (const Origin& o : rows.origins) origins.push_back({o.source, o.row, operation_names(o.operations)});
    return {{"kvfold_format", std::to_string(kCacheFileVersion)},
            {"model_fingerprint", utf8(model.fingerprint)},
            {"architecture", utf8(model.architecture)},
            {"model_name", utf8(model.name)},
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
            {"tokens", dump(rows.tokens)},
            {"positions", dump(rows.positions)},
            {"origins", dump(origins)},
            {"sources", dump(rows.sources)}};
  }

  const KvCache& cache_;
  const CacheShape shape_;
  std::vector<std::byte> elements_, scales_;  // of the last gather()
};

// What load_cache() would refuse is not to be saved.
Status check_positions(const KvCache& cache) {
  const auto in_range = [](int64_t position) { return std::abs(position) <= kMostPosition; };
  if (!in_range(cache.next_position()))
    return Status::error(fmt::format("the cache's next position is {}, expected one in [{}, {}]",
                                     cache.next_position(), -kMostPosition, kMostPosition));
  const std::vector<int32_t>& positions = cache.rows().positions;
  const auto bad = std::find_if_not(positions.begin(), positions.end(), in_range);
  if (bad == positions.end()) return {};
  return Status::error(fmt::format("the position of row {} is {}, expected one in [{}, {}]",
                                   bad - positions.begin(), *bad, -kMostPosition, kMostPosition));
}

class Reader {
 public:
  Reader(std::string path, SafetensorsFile file) : path_(std::move(path)), file_(std::move(file)) {}

  Result<KvCache> read(const CacheModelInfo& model, const CacheShape& shape,
                       const std::shared_ptr<PagePool>& pool) {
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
      for (const TensorPlan& plan : plan_tensors(shape_, part, lane_rows_, rows_->size()))
        KVFOLD_RETURN_IF_ERROR(scatter(part, plan, lanes));
    return KvCache(std::move(lanes), rows_, next_position_);
  }

 private:
  Status fail(const std::string& message) const { return Status::error(path_ + ": " + message); }

  Result<std::string> text(const std::string& key) const {
    const auto at = file_.metadata.find(key);
    if (at == file_.metadata.end()) return fail(fmt::format("metadata key '{}' is missing", key));
    return at->second;
  }

  // A metadata value that holds JSON.
  Result<json> parsed(const std::string& key) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string value, text(key));
    json out = is_shallow(value) ? json::parse(value, nullptr, false) : json(json::value_t::discarded);
    if (out.is_discarded())
      return fail(fmt::format("metadata '{}': found '{}', expected JSON", key, printable(value)));
    return out;
  }

  Result<int64_t> integer(const std::string& key, int64_t least, int64_t most) const {
    KVFOLD_ASSIGN_OR_RETURN(const json number, parsed(key));
    if (!is_integer_in(number, least, most))
      return fail(fmt::format("metadata '{}': found '{}', expected an integer in [{}, {}]", key,
                              printable(dump(number)), least, most));
    return number.get<int64_t>();
  }

  // A JSON list of integers in [least, most].
  Status integers(const std::string& what, const json& list, int64_t least, int64_t most,
                  std::vector<int32_t>& out) const {
    if (!list.is_array()) return fail(fmt::format("metadata '{}': expected a list of integers", what));
    for (const json& x : list) {
      if (!is_integer_in(x, least, most))
        return fail(fmt::format("metadata '{}': element {}: found '{}', expected an integer in [{}, {}]",
                                what, out.size(), printable(dump(x)), least, most));
      out.push_back(x.get<int32_t>());
    }
    return {};
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
    KVFOLD_ASSIGN_OR_RETURN(const std::string wanted, text("checksum"));
    const std::string found = metadata_checksum(file_.metadata);
    if (found != wanted)
      return fail(fmt::format("metadata is damaged: checksum {}, expected {}", found, printable(wanted)));
    return {};
  }

  Status check_model(const CacheModelInfo& model, CacheType type) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string fingerprint, text("model_fingerprint"));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t layers, integer("layers", 1, 1 << 20));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t heads, integer("kv_heads", 1, 1 << 20));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t dim, integer("head_dim", 1, 1 << 20));
    if (fingerprint != model.fingerprint || layers != shape_.layers || heads != shape_.kv_heads ||
        dim != shape_.head_dim) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string name, text("model_name"));
      return fail(fmt::format(
          "the cache is of another model: found '{}' ({}), {} layers x {} KV heads x {}; expected '{}' ({}), "
          "{} x {} x {}",
          printable(name), printable(fingerprint), layers, heads, dim, printable(model.name),
          printable(model.fingerprint), shape_.layers, shape_.kv_heads, shape_.head_dim));
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::string rotated, text("keys_rotated"));
    if (rotated != "false")
      return fail(
          fmt::format("keys_rotated: found '{}', expected false: keys before RoPE", printable(rotated)));
    KVFOLD_ASSIGN_OR_RETURN(const std::string dtype, text("dtype"));
    if (dtype != type_name(type))
      return fail(fmt::format("found pages of type {}, expected {} (--cache-type)", printable(dtype),
                              type_name(type)));
    return {};
  }

  Status read_rows() {
    KVFOLD_ASSIGN_OR_RETURN(const int64_t count, integer("rows", 0, INT32_MAX / 2));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t next, integer("next_position", -kMostPosition, kMostPosition));
    next_position_ = static_cast<int32_t>(next);
    KVFOLD_ASSIGN_OR_RETURN(const json tokens, parsed("tokens"));
    KVFOLD_RETURN_IF_ERROR(integers("tokens", tokens, 0, INT32_MAX, rows_->tokens));
    KVFOLD_ASSIGN_OR_RETURN(const json positions, parsed("positions"));
    KVFOLD_RETURN_IF_ERROR(integers("positions", positions, -kMostPosition, kMostPosition, rows_->positions));
    KVFOLD_RETURN_IF_ERROR(read_origins());
    for (const auto& [what, size] :
         {std::pair{"tokens", rows_->tokens.size()}, std::pair{"positions", rows_->positions.size()},
          std::pair{"origins", rows_->origins.size()}})
      if (static_cast<int64_t>(size) != count)
        return fail(
            fmt::format("metadata '{}': found {} elements, expected {}, one a row", what, size, count));
    return {};
  }

  Status read_origins() {
    KVFOLD_ASSIGN_OR_RETURN(const json sources, parsed("sources"));
    if (!sources.is_array() || sources.empty()) return fail("metadata 'sources': expected a list of names");
    rows_->sources.clear();
    for (const json& name : sources) {
      if (!name.is_string()) return fail("metadata 'sources': expected a list of names");
      rows_->sources.push_back(name.get<std::string>());
    }
    KVFOLD_ASSIGN_OR_RETURN(const json origins, parsed("origins"));
    if (!origins.is_array()) return fail("metadata 'origins': expected a list");
    const auto most = static_cast<int64_t>(rows_->sources.size()) - 1;
    for (const json& o : origins) {
      const bool whole = o.is_array() && o.size() == 3 && is_integer_in(o[0], 0, most) &&
                         is_integer_in(o[1], 0, INT32_MAX) && o[2].is_string();
      if (!whole)
        return fail(fmt::format("metadata 'origins': element {}: expected [source, row, operations]",
                                rows_->origins.size()));
      rows_->origins.push_back(
          {o[0].get<int32_t>(), o[1].get<int32_t>(), parse_operation_names(o[2].get<std::string>())});
    }
    return {};
  }

  Status read_slots() {
    KVFOLD_ASSIGN_OR_RETURN(const json slots, parsed("slots"));
    if (!slots.is_object()) return fail("metadata 'slots': expected an object");
    const int rows = rows_->size();
    size_t used = 0;
    slots_.resize(shape_.lanes());
    lane_rows_.assign(shape_.lanes(), rows);
    for (int lane = 0; lane < shape_.lanes(); ++lane) {
      const std::string name = lane_name(shape_, lane);
      const auto at = slots.find(name);
      if (at == slots.end()) continue;
      ++used;
      std::vector<int32_t>& out = slots_[lane];
      KVFOLD_RETURN_IF_ERROR(integers("slots", *at, 0, rows - 1, out));
      for (size_t i = 1; i < out.size(); ++i)
        if (out[i] <= out[i - 1])
          return fail(fmt::format("metadata 'slots': '{}': found slot {} after {}, expected increasing slots",
                                  name, out[i], out[i - 1]));
      lane_rows_[lane] = static_cast<int64_t>(out.size());
    }
    if (used != slots.size()) return fail("metadata 'slots': names a lane that the model lacks");
    return {};
  }

  // Every tensor of the plan is there, with the right dtype, shape and checksum, and no other.
  Status check_tensors(CacheType type) const {
    KVFOLD_ASSIGN_OR_RETURN(const json checksums, parsed("checksums"));
    size_t expected = 0;
    for (const Part part : kParts)
      for (const TensorPlan& plan : plan_tensors(shape_, part, lane_rows_, rows_->size())) {
        KVFOLD_RETURN_IF_ERROR(
            check_tensor(plan.name, element_dtype(type), plan.shape(shape_.head_dim), checksums));
        ++expected;
        if (type != CacheType::kQ8) continue;
        KVFOLD_RETURN_IF_ERROR(check_tensor(plan.name + "_scales", "F32",
                                            plan.shape(kv_scale_groups(shape_.head_dim)), checksums));
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
      return fail(fmt::format("tensor '{}': found {} {}, expected {} {}", name, tensor.dtype,
                              dump(tensor.shape), dtype, dump(shape)));
    const std::string wanted =
        checksums.is_object() && checksums.contains(name) && checksums[name].is_string()
            ? checksums[name].get<std::string>()
            : "none";
    const std::string found = checksum(tensor.bytes);
    if (found != wanted)
      return fail(
          fmt::format("tensor '{}' is damaged: checksum {}, expected {}", name, found, printable(wanted)));
    return {};
  }

  // Said before any work is done. Lanes with gaps may take more pages than this: scatter() asks again.
  Status require_pages(const PagePool& pool) const {
    size_t pages = 0;
    for (const int64_t rows : lane_rows_)
      pages += 2 * ((static_cast<size_t>(rows) + kPageRows - 1) / kPageRows);
    return pool.require(pages).with_prefix(path_ + ": ");
  }

  // Makes the pages of a tensor's lanes, each page's rows in one go.
  Status scatter(Part part, const TensorPlan& plan, KvLanes& lanes) const {
    const CacheType type = lanes.pool()->type();
    const bool scaled = type == CacheType::kQ8;
    const size_t row_bytes = shape_.head_dim * element_bytes(type);
    const size_t scale_bytes = scaled ? kv_scale_groups(shape_.head_dim) * sizeof(float) : 0;
    const std::byte* elements = file_.tensors.at(plan.name).bytes.data();
    const std::byte* scales = scaled ? file_.tensors.at(plan.name + "_scales").bytes.data() : nullptr;
    for (const int lane : plan.lanes) {
      PageTable& table = lanes.mutable_table(part, lane);
      const std::vector<int32_t>& slots = slots_[lane];
      for (int64_t i = 0; i < plan.rows;) {
        KVFOLD_RETURN_IF_ERROR(
            lanes.pool()->require(table.pages_to_extend(1, false)).with_prefix(path_ + ": "));
        const PageTable::RowPlace first = table.extend(part, slots.empty() ? static_cast<int>(i) : slots[i]);
        const auto count = static_cast<int>(std::min<int64_t>(kPageRows - first.row, plan.rows - i));
        for (int r = 1; r < count; ++r) {
          const PageTable::RowPlace next =
              table.extend(part, slots.empty() ? static_cast<int>(i) + r : slots[i + r]);
          KVFOLD_CHECK(next.page == first.page && next.row == first.row + r);
        }
        dense_to_page(type, part, shape_.head_dim, elements, scales, lanes.pool()->write(first.page),
                      first.row, count);
        elements += count * row_bytes;
        scales += count * scale_bytes;
        i += count;
      }
    }
    return {};
  }

  std::string path_;
  SafetensorsFile file_;
  CacheShape shape_;
  std::shared_ptr<Rows> rows_ = std::make_shared<Rows>();
  int32_t next_position_ = 0;
  std::vector<std::vector<int32_t>> slots_;  // by lane; empty where the lane holds all rows, or none
  std::vector<int64_t> lane_rows_;           // by lane
};

}  // namespace

Status save_cache(const KvCache& cache, const CacheModelInfo& model, const std::string& path) {
  KVFOLD_RETURN_IF_ERROR(check_positions(cache).with_prefix(path + ": "));
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
