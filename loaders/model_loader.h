// Models from files of any supported kind.
#pragma once

#include <memory>
#include <string>

#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

// A GGUF file, or a Hugging Face checkpoint: its folder, config.json, model.safetensors or
// model.safetensors.index.json. Errors: the file is of no known kind (its first bytes are named); otherwise
// those of its kind's loader.
Result<ModelSource> load_model_source(const std::string& path);

struct LoadedVocabulary {
  VocabularySource source;
  std::shared_ptr<const void> storage;  // keeps the views in `source` alive
};

// The vocabulary of a model as above, or of a tokenizer.json or tokenizer.model alone. Errors: those of the
// file's loader.
Result<LoadedVocabulary> load_vocabulary(const std::string& path);

}  // namespace kvfold
