// A model from a GGUF file.
#pragma once

#include <memory>
#include <string>

#include "engine/file.h"
#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

// Reads configuration, tokenizer data and tensors, every shape and type checked; the tensors stay in the
// mapped file. Errors: those of GgufFile::open; an architecture, rope scaling or tensor type that is not
// supported; a key or tensor that is missing or does not fit the others. One line with the path and the key
// or tensor.
Result<ModelSource> load_gguf_model(const std::string& path);
Result<ModelSource> load_gguf_model(std::shared_ptr<const MappedFile> file);

}  // namespace kvfold
