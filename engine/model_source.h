// What a loader hands to the engine: a checked description of a model whose tensors still lie in the mapped
// file.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/config.h"
#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"
#include "kernels/views.h"

namespace kvfold {

// Names of a layer's tensors; every file format's names are mapped to these roles by its loader.
struct LayerTensors {
  MatrixView attention_norm;  // [1, model_dim] f32
  MatrixView wq, wk, wv, wo;  // [heads * head_dim, model_dim], [kv_heads * head_dim, model_dim] x2,
                              // [model_dim, heads * head_dim]
  MatrixView bq, bk, bv, bo;  // [1, rows of the weight] f32; data == nullptr where the model has none
  MatrixView q_norm, k_norm;  // [1, head_dim] f32, per-head norm; data == nullptr where there is none
  MatrixView ffn_norm;        // [1, model_dim] f32
  MatrixView gate, up, down;  // [ffn_dim, model_dim] x2, [model_dim, ffn_dim]
};

struct ModelSource {
  std::string path;
  ModelConfig config;
  VocabularySource vocabulary;
  MatrixView embedding;    // [vocab_size, model_dim]
  MatrixView output_norm;  // [1, model_dim] f32
  MatrixView output;       // [vocab_size, model_dim]; the embedding itself where tied
  bool tied_output = false;
  std::vector<LayerTensors> layers;
  std::string fingerprint;  // 16 hex digits: XXH3-64 of the configuration and of every tensor's name, type,
                            // shape and bytes sampled
  std::shared_ptr<const void> storage;  // keeps every view above alive (the file's mapping)
  // Gives the memory of a view's bytes back for now; they are read from the file again when they are looked
  // at. May be empty.
  std::function<void(const MatrixView& view)> release;
  // Frees a view's bytes for good where they are in no file, and says whether it did. May be empty.
  std::function<bool(const MatrixView& view)> discard;
  // An error where the file was written to since it was opened (MappedFile::unchanged). May be empty.
  std::function<Status()> unchanged;
  // The name that the file gives a view's tensor. May be empty.
  std::function<std::string(const MatrixView& view)> name_of;
};

// Infinity or NaN among the weights would make every result NaN: an error that names file and tensor. A view
// without data is no error.
Status check_finite(const ModelSource& source, const MatrixView& view);
// The same of every tensor, one after another in memory.
Status check_finite(const ModelSource& source);

}  // namespace kvfold
