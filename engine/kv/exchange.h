// Caches as other tools hold them: keys after RoPE, in half-split pairs.
//
// Frameworks keep keys turned by their positions, and pair dimension i with i + rotary_dim / 2 (the
// half-split form of Hugging Face transformers and of safetensors checkpoints). Llama's GGUF files permute
// the rows of wk so that dimension 2i pairs with 2i + 1; keys of such a model are put in the other order on
// the way.
//
// The file is safetensors: layers.{i}.k and layers.{i}.v, [kv_heads, rows, head_dim], and metadata that
// ARCHITECTURE.md lists.
#pragma once

#include <memory>
#include <string>

#include "engine/kv/cache_file.h"

namespace kvfold {

// Writes `path` whole or not at all, in f32. `rotated`: each key is turned by its row's position, in f64,
// rounded once; otherwise keys are as before RoPE. Errors: a lane lacks rows (others have no word for that);
// the file cannot be written.
Status export_cache(const KvCache& cache, const CacheModelInfo& model, bool rotated, const std::string& path);

// The rows of such a file, whoever wrote it, as a cache in `pool`; keys are turned back. Tensors are F32, F16
// or BF16, [kv_heads, rows, head_dim] with or without a leading 1. Metadata: `tokens` must be there;
// `positions` default to 0 .. rows - 1, `next_position` to the one behind the highest, `keys_rotated` to
// true, `rope_pairing` to half-split; `rope_base` and `rotary_dim` may be missing. Rows' origin is the file.
// Errors name the file and the key or tensor: among them keys turned by other angles than the model's, values
// that are no numbers or that the pool's pages cannot hold, the pool exhausted.
Result<KvCache> import_cache(const std::string& path, const CacheModelInfo& model, const CacheShape& shape,
                             const std::shared_ptr<PagePool>& pool);
Result<KvCache> import_cache(const MappedFile& file, const CacheModelInfo& model, const CacheShape& shape,
                             const std::shared_ptr<PagePool>& pool);

}  // namespace kvfold
