// From a model's name or path to a session, in one call: what every program begins with.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/backends.h"
#include "engine/session.h"
#include "loaders/quantize.h"

namespace kvfold {

// A path that exists is taken as it is; otherwise `model` is a name or alias of the table
// weights/models.json, whose file or folder lies in weights/cache (or in the folder that KVFOLD_WEIGHTS
// names). Errors: neither a file nor a known name (the known names are listed); a known name that was not
// fetched yet (the command to fetch it is given).
Result<std::string> resolve_model(const std::string& model);

// The file in weights/cache whose model has that fingerprint; "" where none has. Errors: the table cannot be
// read.
Result<std::string> find_fetched_model(const std::string& fingerprint);

struct OpenOptions {
  std::string backend = "cpu";  // as make_backend() takes it
  Prefill prefill = Prefill::kTiles;
  int device = -1;            // likewise
  Quantization quantization;  // on load
  CpuOptions cpu;
  SessionOptions session;
  // Told which GPU was taken and what will lie in its memory, before it does.
  std::function<void(const std::string& line)> notice;
};

// Errors: those of resolve_model, of the loader, of the backend and of the session.
Result<std::unique_ptr<Session>> open_session(const std::string& model, const OpenOptions& options);

}  // namespace kvfold
