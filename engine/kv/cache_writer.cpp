// save_cache(). A tensor at a time is made of its pages, hashed and written while it is in the processor's
// cache, by as many threads as there are: a second copy of the whole would cost its memory, and a second pass
// its time. The checksums go into the header, which is written last.
#include <fmt/core.h>

#include <algorithm>

#include "engine/kv/cache_metadata.h"
#include "engine/kv/cache_threads.h"
#include "engine/kv/dense_rows.h"
#include "engine/safetensors.h"

namespace kvfold {
namespace {

using nlohmann::json;

std::vector<int32_t> lane_slots(const PageTable& table) {
  std::vector<int32_t> slots;
  for (const KvSpan& span : table.spans())
    for (int i = 0; i < span.count; ++i) slots.push_back(span.slot + i);
  return slots;
}

class Writer {
 public:
  Writer(const KvCache& cache, const CacheModelInfo& model) : cache_(cache), shape_(cache.shape()) {
    std::vector<int64_t> lane_rows;
    json slots = json::object();
    for (int lane = 0; lane < shape_.lanes(); ++lane) {
      const PageTable& table = cache_.lanes().table(Part::kKey, lane);
      lane_rows.push_back(table.rows());
      if (table.rows() != cache_.size()) slots[lane_name(shape_, lane)] = lane_slots(table);
    }
    describe(model);
    metadata_["slots"] = dump_json(slots);
    plans_ = plan_tensors(shape_, lane_rows, cache_.size());
    for (const TensorPlan& plan : plans_) {
      entries_.push_back({plan.name, element_dtype(cache_.type()), plan.shape(shape_.head_dim)});
      if (scaled())
        entries_.push_back({plan.name + "_scales", "F32", plan.shape(kv_scale_groups(shape_.head_dim))});
    }
    checksums_.resize(entries_.size(), checksum({}));
    set_checksums();
  }

  Status write(AtomicFile& file) {
    KVFOLD_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(file, metadata_, entries_));
    std::vector<Status> written(plans_.size());
    run_on_threads(*cache_.pool(), plans_.size(), cache_bytes(cache_),
                   [&](size_t i, int thread) { written[i] = write_tensor(writer, i, buffers_[thread]); });
    for (Status& status : written) KVFOLD_RETURN_IF_ERROR(status);
    KVFOLD_RETURN_IF_ERROR(cache_.pool()->status());
    set_checksums();
    return writer.finish(metadata_);
  }

 private:
  // One tensor's bytes, kept from tensor to tensor by each thread.
  struct Buffers {
    std::vector<std::byte> elements, scales;
  };

  bool scaled() const { return cache_.type() == CacheType::kQ8; }

  // Makes, hashes and writes the tensor of plans_[i], and for q8 that of its scales.
  Status write_tensor(const SafetensorsWriter& writer, size_t i, Buffers& buffers) {
    const TensorPlan& plan = plans_[i];
    const size_t rows = plan.rows * plan.lanes.size();
    const size_t row_bytes = shape_.head_dim * element_bytes(cache_.type());
    const size_t scale_bytes = scaled() ? kv_scale_groups(shape_.head_dim) * sizeof(float) : 0;
    auto& [elements, scales] = buffers;
    elements.resize(rows * row_bytes);
    scales.resize(rows * scale_bytes);
    size_t row = 0;
    for (const int lane : plan.lanes)
      for (const KvSpan& span : cache_.lanes().table(plan.part, lane).spans()) {
        page_to_dense(cache_.type(), plan.part, shape_.head_dim, cache_.pool()->read(span.page), span.first,
                      span.count, elements.data() + row * row_bytes, scales.data() + row * scale_bytes);
        row += span.count;
      }
    const size_t entry = scaled() ? 2 * i : i;
    checksums_[entry] = checksum(elements);
    KVFOLD_RETURN_IF_ERROR(writer.write(entry, elements));
    if (!scaled()) return {};
    checksums_[entry + 1] = checksum(scales);
    return writer.write(entry + 1, scales);
  }

  // Takes as much room before the checksums are known as after.
  void set_checksums() {
    json all = json::object();
    for (size_t i = 0; i < entries_.size(); ++i) all[entries_[i].name] = checksums_[i];
    metadata_["checksums"] = dump_json(all);
    metadata_["checksum"] = metadata_checksum(metadata_);
  }

  void describe(const CacheModelInfo& model) {
    const Rows& rows = cache_.rows();
    json origins = json::array();
    for (const Origin& o : rows.origins) origins.push_back({o.source, o.row, operation_names(o.operations)});
    metadata_ = {{"kvfold_format", std::to_string(kCacheFileVersion)},
                 {"model_fingerprint", to_utf8(model.fingerprint)},
                 {"architecture", to_utf8(model.architecture)},
                 {"model_name", to_utf8(model.name)},
                 {"rope_base", fmt::format("{}", model.rope_base)},
                 {"rope_pairing", pairing_name(model.rope_pairing)},
                 {"rotary_dim", std::to_string(model.rotary_dim)},
                 {"keys_rotated", "false"},
                 {"dtype", cache_type_name(cache_.type())},
                 {"layers", std::to_string(shape_.layers)},
                 {"kv_heads", std::to_string(shape_.kv_heads)},
                 {"head_dim", std::to_string(shape_.head_dim)},
                 {"rows", std::to_string(cache_.size())},
                 {"next_position", std::to_string(cache_.next_position())},
                 {"tokens", dump_json(rows.tokens)},
                 {"positions", dump_json(rows.positions)},
                 {"origins", dump_json(origins)},
                 {"sources", dump_json(rows.sources)}};
    if (!model.rope_factors.empty()) metadata_["rope_factors"] = dump_json(model.rope_factors);
  }

  const KvCache& cache_;
  const CacheShape shape_;
  std::map<std::string, std::string> metadata_;
  std::vector<TensorPlan> plans_;
  std::vector<SafetensorsEntry> entries_;  // one a plan; for q8 two, the second of the scales
  std::vector<std::string> checksums_;     // of entries_
  std::array<Buffers, kMostCacheThreads> buffers_;
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

}  // namespace

Status save_cache(const KvCache& cache, const CacheModelInfo& model, const std::string& path) {
  KVFOLD_RETURN_IF_ERROR(check_positions(cache).with_prefix(path + ": "));
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(Writer(cache, model).write(file));
  return file.commit();
}

}  // namespace kvfold
