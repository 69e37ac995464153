// A short name for a model's exact weights and configuration.
#pragma once

#include <string>

#include "engine/model_source.h"

namespace kvfold {

// 16 hex digits: XXH3-64 over the configuration and over every tensor's role, type, shape and a sample of its
// bytes (the first and last 4096, and 16 pieces of 256 between), which tells models and quantisations apart
// without reading them whole.
std::string fingerprint(const ModelSource& source);

}  // namespace kvfold
