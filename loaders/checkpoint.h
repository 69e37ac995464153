// A model from a Hugging Face checkpoint: a folder with config.json, the weights as model.safetensors or as
// shards with model.safetensors.index.json, and the tokenizer's files.
#pragma once

#include <string>

#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

// Reads configuration, tokenizer and tensors, every shape and type checked. The weights stay in the mapped
// files as they are stored (F32, F16 or BF16); those that lie unaligned in their file are copied.
// Errors: a file or tensor that is missing, is malformed or does not fit the others; anything that
// read_checkpoint_config or read_checkpoint_vocabulary refuses. One line with the file and the key or tensor.
Result<ModelSource> load_checkpoint(const std::string& folder);

}  // namespace kvfold
