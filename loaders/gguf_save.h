// Writing a model as a GGUF file (version 3, little-endian).
//
// Source: the GGUF specification (ggml, docs/gguf.md), and for names and metadata what llama.cpp's converter
// writes, so that other tools read the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/model_source.h"
#include "engine/status.h"

namespace kvfold {

// A tensor of a model under its GGUF name.
struct GgufTensorName {
  std::string name;
  MatrixView view;  // a view without rows: the model has no such tensor, and it is not listed
  bool matrix;      // rather than a vector
  // Rows of q and k, which llama files hold permuted for interleaved RoPE pairs.
  bool query_key;
};
// All tensors of a model, in the order in which GGUF files hold them.
std::vector<GgufTensorName> gguf_tensor_names(const ModelSource& source);

struct GgufEntry {
  std::string name;
  std::vector<int64_t> shape;  // columns first
  WeightType type;
  // Called once, when the tensor's turn comes; the bytes are written before the next entry's are asked for.
  // REQUIRES: as many bytes as shape and type say.
  std::function<Result<std::span<const std::byte>>()> bytes;
};

// Writes configuration and vocabulary of `source`, and `tensors`, to `path`, whole or not at all.
// `file_type`: llama.cpp's number for a file of these types (general.file_type).
// Errors: the file cannot be written; those of the entries.
Status save_gguf_model(const ModelSource& source, uint32_t file_type, std::span<const GgufEntry> tensors,
                       const std::string& path);

}  // namespace kvfold
