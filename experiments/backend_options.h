// --backend and --device, as every program has them that runs a model.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace kvfold {

// `device` stays as it is, negative, where none is asked for.
inline void add_backend_options(CLI::App& app, std::string& backend, int& device) {
  app.add_option("--backend", backend, "cpu, cuda, or auto: a GPU that works, else the CPU")
      ->capture_default_str();
  app.add_option("--device", device, "number of the GPU (default: the first that works)")
      ->check(CLI::Range(0, 1 << 16));
}

}  // namespace kvfold
