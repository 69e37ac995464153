// Models from files of any supported kind.
#pragma once

#include <string>

#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

// A GGUF file, or a Hugging Face checkpoint: its folder, config.json, model.safetensors or
// model.safetensors.index.json. Errors: the file is of no known kind (its first bytes are named); otherwise
// those of its kind's loader.
Result<ModelSource> load_model_source(const std::string& path);

}  // namespace kvfold
