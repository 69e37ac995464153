// The backends that a program was built with, by name.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/backend.h"

namespace kvfold {

// How products of many rows are made on a GPU.
enum class Prefill {
  kTiles,   // our own kernels: the CPU's bits
  kCublas,  // weights to f32, then cuBLAS: other bits, which also depend on how a prompt is cut into chunks
  kAuto,    // whichever is faster on this GPU, measured on the first product
};
// "tiles", "cublas", "auto".
Result<Prefill> parse_prefill(const std::string& text);

struct BackendOptions {
  CpuOptions cpu;  // its precision is every backend's
  Prefill prefill = Prefill::kTiles;
  int device = -1;  // number of the GPU; negative: the first that will do
};

using BackendFactory = std::function<Result<std::shared_ptr<Backend>>(const BackendOptions&)>;
// Adds a backend to those that make_backend() knows. Object files of GPU backends call it before main().
bool add_backend(const std::string& name, BackendFactory make);

// `name` is cpu, a name that was added, or auto: a GPU that works where there is one, else the CPU, unless a
// device is asked for. Errors: an unknown name, with the known ones; a device with the CPU; what the backend
// says.
Result<std::shared_ptr<Backend>> make_backend(const std::string& name, const BackendOptions& options);

}  // namespace kvfold
