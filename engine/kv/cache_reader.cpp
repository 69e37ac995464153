// load_cache() and read_cache_info(). The header is checked whole before memory is spent on what it says;
// then pages are taken, and each tensor is hashed and spread over its pages while it is in the processor's
// cache.
#include <fmt/core.h>

#include <algorithm>

#include "engine/kv/cache_metadata.h"
#include "engine/kv/cache_threads.h"
#include "engine/kv/dense_rows.h"
#include "engine/printable.h"
#include "engine/safetensors.h"

namespace kvfold {
namespace {

using nlohmann::json;
constexpr std::array kParts = {Part::kKey, Part::kValue};

class Reader {
 public:
  Reader(const std::string& path, SafetensorsFile file)
      : file_(std::move(file)), meta_(path, file_.metadata) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  Result<CacheFileInfo> info() {
    KVFOLD_RETURN_IF_ERROR(check_version());
    KVFOLD_RETURN_IF_ERROR(check_metadata());
    CacheFileInfo out;
    KVFOLD_ASSIGN_OR_RETURN(out.shape, meta_.shape());
    KVFOLD_ASSIGN_OR_RETURN(const int64_t rows, meta_.integer("rows", 0, INT32_MAX / 2));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t next,
                            meta_.integer("next_position", -kMostPosition, kMostPosition));
    out.rows = static_cast<int>(rows);
    out.next_position = static_cast<int32_t>(next);
    KVFOLD_ASSIGN_OR_RETURN(
        out.type,
        meta_.one_of("dtype", std::array{CacheType::kF16, CacheType::kF32, CacheType::kQ8}, cache_type_name));
    KVFOLD_ASSIGN_OR_RETURN(out.model, meta_.model(out.shape));
    return out;
  }

  Result<KvCache> read(const CacheModelInfo& model, const CacheShape& shape,
                       const std::shared_ptr<PagePool>& pool) {
    shape_ = shape;
    KVFOLD_RETURN_IF_ERROR(check_version());
    KVFOLD_RETURN_IF_ERROR(check_metadata());
    KVFOLD_RETURN_IF_ERROR(check_model(model, pool->type()));
    KVFOLD_RETURN_IF_ERROR(read_rows());
    KVFOLD_RETURN_IF_ERROR(read_slots());
    plans_ = plan_tensors(shape_, lane_rows_, rows_->size());
    KVFOLD_RETURN_IF_ERROR(check_tensors(pool->type()));
    KvLanes lanes(pool, shape_);
    KVFOLD_RETURN_IF_ERROR(allocate(lanes).with_prefix(meta_.path() + ": "));
    std::vector<Status> statuses(plans_.size());
    size_t bytes = 0;
    for (const auto& [name, tensor] : file_.tensors) bytes += tensor.bytes.size();
    run_on_threads(*pool, plans_.size(), bytes,
                   [&](size_t i, int) { statuses[i] = read_tensor(plans_[i], lanes); });
    for (Status& status : statuses) KVFOLD_RETURN_IF_ERROR(status);
    return KvCache(std::move(lanes), rows_, next_position_);
  }

 private:
  Status check_version() const {
    if (!file_.metadata.contains("kvfold_format"))
      return meta_.fail("no metadata 'kvfold_format': expected a cache file of kvfold");
    KVFOLD_ASSIGN_OR_RETURN(const int64_t version, meta_.integer("kvfold_format", 0, INT32_MAX));
    if (version != kCacheFileVersion)
      return meta_.fail(fmt::format("cache format version {}: expected {}", version, kCacheFileVersion));
    return {};
  }

  Status check_metadata() const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string wanted, meta_.text("checksum"));
    const std::string found = metadata_checksum(file_.metadata);
    if (found != wanted)
      return meta_.fail(
          fmt::format("metadata is damaged: checksum {}, expected {}", found, printable(wanted)));
    return {};
  }

  Status check_model(const CacheModelInfo& model, CacheType type) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string fingerprint, meta_.text("model_fingerprint"));
    KVFOLD_ASSIGN_OR_RETURN(const CacheShape shape, meta_.shape());
    if (fingerprint != model.fingerprint || shape != shape_) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string name, meta_.text("model_name"));
      return meta_.fail(fmt::format(
          "the cache is of another model: found '{}' ({}), {} layers x {} KV heads x {}; expected '{}' ({}), "
          "{} x {} x {}",
          printable(name), printable(fingerprint), shape.layers, shape.kv_heads, shape.head_dim,
          printable(model.name), printable(model.fingerprint), shape_.layers, shape_.kv_heads,
          shape_.head_dim));
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::string rotated, meta_.text("keys_rotated"));
    if (rotated != "false")
      return meta_.fail(
          fmt::format("keys_rotated: found '{}', expected false: keys before RoPE", printable(rotated)));
    KVFOLD_ASSIGN_OR_RETURN(const std::string dtype, meta_.text("dtype"));
    if (dtype != cache_type_name(type))
      return meta_.fail(fmt::format("found pages of type {}, expected {} (--cache-type)", printable(dtype),
                                    cache_type_name(type)));
    return {};
  }

  Status read_rows() {
    KVFOLD_ASSIGN_OR_RETURN(const int64_t count, meta_.integer("rows", 0, INT32_MAX / 2));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t next,
                            meta_.integer("next_position", -kMostPosition, kMostPosition));
    next_position_ = static_cast<int32_t>(next);
    KVFOLD_ASSIGN_OR_RETURN(rows_->tokens, meta_.integers("tokens", 0, INT32_MAX));
    KVFOLD_ASSIGN_OR_RETURN(rows_->positions, meta_.integers("positions", -kMostPosition, kMostPosition));
    KVFOLD_RETURN_IF_ERROR(read_origins());
    for (const auto& [what, size] :
         {std::pair{"tokens", rows_->tokens.size()}, std::pair{"positions", rows_->positions.size()},
          std::pair{"origins", rows_->origins.size()}})
      if (static_cast<int64_t>(size) != count)
        return meta_.fail(
            fmt::format("metadata '{}': found {} elements, expected {}, one a row", what, size, count));
    return {};
  }

  Status read_origins() {
    KVFOLD_ASSIGN_OR_RETURN(const json sources, meta_.parsed("sources"));
    if (!sources.is_array() || sources.empty())
      return meta_.fail("metadata 'sources': expected a list of names");
    rows_->sources.clear();
    for (const json& name : sources) {
      if (!name.is_string()) return meta_.fail("metadata 'sources': expected a list of names");
      rows_->sources.push_back(name.get<std::string>());
    }
    KVFOLD_ASSIGN_OR_RETURN(const json origins, meta_.parsed("origins"));
    if (!origins.is_array()) return meta_.fail("metadata 'origins': expected a list");
    const auto most = static_cast<int64_t>(rows_->sources.size()) - 1;
    for (const json& o : origins) {
      const bool whole = o.is_array() && o.size() == 3 && is_integer_in(o[0], 0, most) &&
                         is_integer_in(o[1], 0, INT32_MAX) && o[2].is_string();
      if (!whole)
        return meta_.fail(fmt::format("metadata 'origins': element {}: expected [source, row, operations]",
                                      rows_->origins.size()));
      rows_->origins.push_back(
          {o[0].get<int32_t>(), o[1].get<int32_t>(), parse_operation_names(o[2].get<std::string>())});
    }
    return {};
  }

  Status read_slots() {
    KVFOLD_ASSIGN_OR_RETURN(const json slots, meta_.parsed("slots"));
    if (!slots.is_object()) return meta_.fail("metadata 'slots': expected an object");
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
      KVFOLD_RETURN_IF_ERROR(meta_.integers("slots", *at, 0, rows - 1, out));
      for (size_t i = 1; i < out.size(); ++i)
        if (out[i] <= out[i - 1])
          return meta_.fail(
              fmt::format("metadata 'slots': '{}': found slot {} after {}, expected increasing slots", name,
                          out[i], out[i - 1]));
      lane_rows_[lane] = static_cast<int64_t>(out.size());
    }
    if (used != slots.size()) return meta_.fail("metadata 'slots': names a lane that the model lacks");
    return {};
  }

  // Every tensor of the plan is there, with the right dtype and shape, and no other.
  Status check_tensors(CacheType type) {
    KVFOLD_ASSIGN_OR_RETURN(checksums_, meta_.parsed("checksums"));
    size_t expected = 0;
    for (const TensorPlan& plan : plans_) {
      KVFOLD_RETURN_IF_ERROR(check_tensor(plan.name, element_dtype(type), plan.shape(shape_.head_dim)));
      ++expected;
      if (type != CacheType::kQ8) continue;
      KVFOLD_RETURN_IF_ERROR(
          check_tensor(plan.name + "_scales", "F32", plan.shape(kv_scale_groups(shape_.head_dim))));
      ++expected;
    }
    if (expected != file_.tensors.size())
      return meta_.fail(fmt::format("found {} tensors, expected {}", file_.tensors.size(), expected));
    return {};
  }

  Status check_tensor(const std::string& name, const char* dtype, const std::vector<int64_t>& shape) const {
    const auto at = file_.tensors.find(name);
    if (at == file_.tensors.end()) return meta_.fail(fmt::format("tensor '{}' is missing", name));
    const SafetensorsTensor& tensor = at->second;
    if (tensor.dtype != dtype || tensor.shape != shape)
      return meta_.fail(fmt::format("tensor '{}': found {} {}, expected {} {}", name, tensor.dtype,
                                    dump_json(tensor.shape), dtype, dump_json(shape)));
    return {};
  }

  // The tensor's bytes, once they are known to be what was saved.
  Result<std::span<const std::byte>> checked_bytes(const std::string& name) const {
    const std::span<const std::byte> bytes = file_.tensors.at(name).bytes;
    const bool known = checksums_.is_object() && checksums_.contains(name) && checksums_[name].is_string();
    const std::string wanted = known ? checksums_[name].get<std::string>() : "none";
    const std::string found = checksum(bytes);
    if (found == wanted) return bytes;
    return meta_.fail(
        fmt::format("tensor '{}' is damaged: checksum {}, expected {}", name, found, printable(wanted)));
  }

  // Pages for all rows, not yet written. A lane's rows lie one after another in its pages, whatever their
  // slots.
  Status allocate(KvLanes& lanes) const {
    size_t pages = 0;
    for (const int64_t rows : lane_rows_)
      pages += 2 * ((static_cast<size_t>(rows) + kPageRows - 1) / kPageRows);
    KVFOLD_RETURN_IF_ERROR(lanes.pool()->require(pages));
    for (const Part part : kParts)
      for (int lane = 0; lane < shape_.lanes(); ++lane) {
        PageTable& table = lanes.mutable_table(part, lane);
        if (lane_rows_[lane] == rows_->size()) {
          table.extend_rows(0, rows_->size());
        } else {
          for (const int32_t slot : slots_[lane]) table.extend(slot);
        }
      }
    return {};
  }

  // Spreads a tensor over its lanes' pages.
  Status read_tensor(const TensorPlan& plan, const KvLanes& lanes) const {
    PagePool& pool = *lanes.pool();
    const bool scaled = pool.type() == CacheType::kQ8;
    const size_t row_bytes = shape_.head_dim * element_bytes(pool.type());
    const size_t scale_bytes = scaled ? kv_scale_groups(shape_.head_dim) * sizeof(float) : 0;
    KVFOLD_ASSIGN_OR_RETURN(const std::span<const std::byte> all, checked_bytes(plan.name));
    const std::byte* elements = all.data();
    const std::byte* scales = nullptr;
    if (scaled) {
      KVFOLD_ASSIGN_OR_RETURN(const std::span<const std::byte> all_scales,
                              checked_bytes(plan.name + "_scales"));
      scales = all_scales.data();
    }
    for (const int lane : plan.lanes)
      for (const KvSpan& span : lanes.table(plan.part, lane).spans()) {
        dense_to_page(pool.type(), plan.part, shape_.head_dim, elements, scales, pool.write(span.page),
                      span.first, span.count);
        elements += span.count * row_bytes;
        scales += span.count * scale_bytes;
      }
    return {};
  }

  SafetensorsFile file_;
  MetadataReader meta_;
  CacheShape shape_;
  std::shared_ptr<Rows> rows_ = std::make_shared<Rows>();
  int32_t next_position_ = 0;
  std::vector<std::vector<int32_t>> slots_;  // by lane; empty where the lane holds all rows, or none
  std::vector<int64_t> lane_rows_;           // by lane
  std::vector<TensorPlan> plans_;
  json checksums_;
};

}  // namespace

Result<CacheFileInfo> read_cache_info(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  return read_cache_info(*map);
}

Result<CacheFileInfo> read_cache_info(const MappedFile& file) {
  KVFOLD_ASSIGN_OR_RETURN(SafetensorsFile parsed, parse_safetensors(file.bytes(), file.path()));
  return Reader(file.path(), std::move(parsed)).info();
}

Result<KvCache> load_cache(const std::string& path, const CacheModelInfo& model, const CacheShape& shape,
                           const std::shared_ptr<PagePool>& pool) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  return load_cache(*map, model, shape, pool);
}

Result<KvCache> load_cache(const MappedFile& file, const CacheModelInfo& model, const CacheShape& shape,
                           const std::shared_ptr<PagePool>& pool) {
  KVFOLD_ASSIGN_OR_RETURN(SafetensorsFile parsed, parse_safetensors(file.bytes(), file.path()));
  return Reader(file.path(), std::move(parsed)).read(model, shape, pool);
}

}  // namespace kvfold
