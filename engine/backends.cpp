#include "engine/backends.h"

#include <fmt/core.h>

#include <utility>

#include "engine/printable.h"

namespace kvfold {
namespace {

std::vector<std::pair<std::string, BackendFactory>>& added() {
  static std::vector<std::pair<std::string, BackendFactory>> list;
  return list;
}

}  // namespace

Result<Prefill> parse_prefill(const std::string& text) {
  if (text == "tiles") return Prefill::kTiles;
  if (text == "cublas") return Prefill::kCublas;
  if (text == "auto") return Prefill::kAuto;
  return Status::error(fmt::format("prefill '{}': expected tiles, cublas or auto", printable(text)));
}

bool add_backend(const std::string& name, BackendFactory make) {
  added().emplace_back(name, std::move(make));
  return true;
}

Result<std::shared_ptr<Backend>> make_backend(const std::string& name, const BackendOptions& options) {
  std::string known = "cpu";
  for (const auto& [added_name, make] : added()) {
    if (name == added_name) return make(options);
    // The executor of the tests is no GPU.
    if (name == "auto" && added_name == "cuda") {
      Result<std::shared_ptr<Backend>> backend = make(options);
      if (backend.ok() || options.device >= 0) return backend;
    }
    known += ", " + added_name;
  }
  if (name == "cpu" && options.device >= 0)
    return Status::error(fmt::format("device {}: the backend 'cpu' is on no GPU", options.device));
  if (name == "cpu" || (name == "auto" && options.device < 0)) return make_cpu_backend(options.cpu);
  // For a device `auto` would have been cuda, had it been added.
  if (name == "cuda" || name == "auto")
    return Status::error(fmt::format(
        "backend 'cuda': not in this program, which was built without nvcc 12 or later; it has: {}, auto",
        known));
  return Status::error(
      fmt::format("backend '{}': this program was built with: {}, auto", printable(name), known));
}

}  // namespace kvfold
