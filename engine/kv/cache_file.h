// Cache files: a cache on disk, as one safetensors file that any tool can open.
//
// ARCHITECTURE.md documents the format. In short: layers.{i}.k and layers.{i}.v as [kv_heads, rows,
// head_dim], keys before RoPE; where a layer's lanes hold different rows, one tensor a lane,
// layers.{i}.heads.{h}.k as [rows, head_dim] with its slots in the metadata. f32 and f16 pages are stored as
// they are; q8 pages as int8 with their scales beside them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/file.h"
#include "engine/kv/cache.h"
#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

inline constexpr int kCacheFileVersion = 1;

// What a cache file says of the model that its vectors belong to.
struct CacheModelInfo {
  std::string fingerprint;
  std::string architecture;
  std::string name;
  float rope_base = 0;
  RopePairing rope_pairing = RopePairing::kHalfSplit;
  int rotary_dim = 0;
  std::vector<float> rope_factors = {};  // as ModelConfig has them
};

inline CacheModelInfo cache_model_info(const ModelSource& source) {
  const ModelConfig& c = source.config;
  return {source.fingerprint, c.architecture, c.name,        c.rope_base,
          c.rope_pairing,     c.rotary_dim,   c.rope_factors};
}

// What a cache file says of itself, without its vectors.
struct CacheFileInfo {
  CacheModelInfo model;
  CacheShape shape;
  CacheType type = CacheType::kF16;
  int rows = 0;
  int32_t next_position = 0;
};
// Reads the header alone: enough to make a pool for the cache and to load it without its model. Errors, each
// naming the file and the key: not a cache file, another format version, damaged metadata.
Result<CacheFileInfo> read_cache_info(const std::string& path);
Result<CacheFileInfo> read_cache_info(const MappedFile& file);

// "f16", "f32", "q8".
const char* cache_type_name(CacheType type);

// Writes `path` whole or not at all. Errors: the file cannot be written; a position or next_position() beyond
// +-2^30; so many rows that the header would be beyond the format's 100 MB.
Status save_cache(const KvCache& cache, const CacheModelInfo& model, const std::string& path);

// A cache in `pool` with the file's rows, bit for bit. Rows' origins name the file's own sources.
// Errors, each naming the file and the key or tensor: not a cache file, another format version, damaged (a
// checksum differs), another model's (both fingerprints and shapes are named), another page type than the
// pool's, keys that are rotated, the pool exhausted.
Result<KvCache> load_cache(const std::string& path, const CacheModelInfo& model, const CacheShape& shape,
                           const std::shared_ptr<PagePool>& pool);
Result<KvCache> load_cache(const MappedFile& file, const CacheModelInfo& model, const CacheShape& shape,
                           const std::shared_ptr<PagePool>& pool);

}  // namespace kvfold
