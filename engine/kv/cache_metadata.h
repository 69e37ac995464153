// What cache files say in their metadata, and the names of their tensors: shared by those who read and write
// them. ARCHITECTURE.md documents the format.
#pragma once

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "engine/kv/cache_file.h"

namespace kvfold {

// JSON text; what is not UTF-8 (a model's name or a path may hold anything) is replaced by U+FFFD.
std::string dump_json(const nlohmann::json& value);
// `text` with what is not UTF-8 replaced.
std::string to_utf8(const std::string& text);

// XXH3-64 in hex (16 digits).
std::string checksum(std::span<const std::byte> bytes);
// Over everything in the metadata but itself.
std::string metadata_checksum(const std::map<std::string, std::string>& metadata);

const char* pairing_name(RopePairing pairing);
const char* element_dtype(CacheType type);
bool is_integer_in(const nlohmann::json& value, int64_t least, int64_t most);

// The tensors of one K or V: a layer's lanes together where they all hold every row, else each lane by
// itself.
struct TensorPlan {
  Part part;
  std::string name;
  std::vector<int> lanes;
  int64_t rows;  // of each lane
  bool single;   // one lane by itself
  std::vector<int64_t> shape(int columns) const {
    if (single) return {rows, columns};
    return {static_cast<int64_t>(lanes.size()), rows, columns};
  }
};
// All of K, then all of V. How many rows each lane holds decides the names; `lane_rows` is by lane.
std::vector<TensorPlan> plan_tensors(const CacheShape& shape, std::span<const int64_t> lane_rows,
                                     int64_t rows);
// The key of a lane in the metadata's "slots".
std::string lane_name(const CacheShape& shape, int lane);

// Reads values of a file's metadata. Errors name the file and the key.
class MetadataReader {
 public:
  // `metadata` outlives this.
  MetadataReader(std::string path, const std::map<std::string, std::string>& metadata)
      : path_(std::move(path)), metadata_(&metadata) {}

  const std::string& path() const { return path_; }
  bool has(const std::string& key) const { return metadata_->contains(key); }
  Status fail(const std::string& message) const { return Status::error(path_ + ": " + message); }
  Result<std::string> text(const std::string& key) const;
  // A value that holds JSON.
  Result<nlohmann::json> parsed(const std::string& key) const;
  Result<int64_t> integer(const std::string& key, int64_t least, int64_t most) const;
  // A JSON list of integers in [least, most], from `list`, which `what` names.
  Status integers(const std::string& what, const nlohmann::json& list, int64_t least, int64_t most,
                  std::vector<int32_t>& out) const;
  // The same, read from a key.
  Result<std::vector<int32_t>> integers(const std::string& key, int64_t least, int64_t most) const;
  // A value that is the name of one of `values`.
  template <class T, size_t n>
  Result<T> one_of(const std::string& key, const std::array<T, n>& values, const char* (*name)(T)) const {
    KVFOLD_ASSIGN_OR_RETURN(const std::string found, text(key));
    std::string known;
    for (const T value : values) {
      if (found == name(value)) return value;
      known += (known.empty() ? "" : ", ") + std::string(name(value));
    }
    return not_one_of(key, found, known);
  }
  Result<CacheShape> shape() const;
  Result<CacheModelInfo> model(const CacheShape& shape) const;

 private:
  Status not_one_of(const std::string& key, const std::string& found, const std::string& known) const;
  std::string path_;
  const std::map<std::string, std::string>* metadata_;
};

}  // namespace kvfold
