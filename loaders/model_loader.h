// Models from files of any supported kind.
#pragma once

#include <string>

#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

// Errors: the file is of no known kind (its first bytes are named); otherwise those of its kind's loader.
Result<ModelSource> load_model_source(const std::string& path);

}  // namespace kvfold
