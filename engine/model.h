// A model: configuration, weights taken in by a backend, and the forward pass.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/model_source.h"
#include "engine/rope.h"

namespace kvfold {

// One layer's weights; pointers to f32 vectors are in backend memory, null where the architecture has none.
struct LayerWeights {
  std::shared_ptr<float> attention_norm;   // [model_dim]
  std::unique_ptr<Weight> wq, wk, wv, wo;  // [heads * head_dim, model_dim], [kv_heads * head_dim, model_dim]
                                           // x2, [model_dim, heads * head_dim]
  std::shared_ptr<float> bq, bk, bv, bo;   // [rows of the weight]
  std::shared_ptr<float> q_norm, k_norm;   // [head_dim]
  std::shared_ptr<float> ffn_norm;         // [model_dim]
  std::unique_ptr<Weight> gate, up, down;  // [ffn_dim, model_dim] x2, [model_dim, ffn_dim]
};

// Activations of one batch, for at most `rows` tokens; backend memory.
struct Activations {
  int rows = 0;
  std::shared_ptr<float> x;            // [rows, model_dim]
  std::shared_ptr<float> q, attended;  // [rows, heads * head_dim]
  std::shared_ptr<float> k, v;         // [rows, kv_heads * head_dim]
  std::shared_ptr<float> gated;        // [rows, ffn_dim]
  std::shared_ptr<float> normed;       // [kLogitRows, model_dim]
  std::shared_ptr<float> logits;       // [kLogitRows, vocab_size]
};

// Looks on as a forward pass runs: called in each layer once its queries, q [rows, heads * head_dim] before
// RoPE (backend memory), are made and its keys are in the caches.
using QueryProbe = std::function<void(int layer, std::span<const BatchSequence> batch, const float* q)>;

class Model {
 public:
  // Rows whose logits are made at once.
  static constexpr int kLogitRows = 16;

  // Takes the weights in. Errors: no memory.
  static Result<std::shared_ptr<Model>> create(ModelSource source, std::shared_ptr<Backend> backend);

  const ModelConfig& config() const { return source_.config; }
  // Matrices that were quantised on load and that the backend has copied have no data here any more.
  const ModelSource& source() const { return source_; }
  Backend& backend() const { return *backend_; }
  CacheShape cache_shape() const { return {config().layers, config().kv_heads, config().head_dim}; }

  Result<Activations> make_activations(int rows) const;
  // Floats of each buffer that make_activations() takes for a model of this shape, in the order of
  // Activations.
  static std::array<int64_t, 8> activation_floats(const ModelConfig& config, int rows);

  // Computes the rows of `tokens`, which their caches have already grown, and leaves the last layer's output
  // in activations.x. REQUIRES: tokens.size() <= activations.rows, ids in the vocabulary, `batch` covers the
  // tokens in order.
  void forward(std::span<const TokenId> tokens, std::span<const BatchSequence> batch,
               Activations& activations, const QueryProbe& probe = {});
  // Logits [rows.size(), vocab_size] of some rows of activations.x, in activations.logits.
  // REQUIRES: rows.size() <= kLogitRows.
  void logits(std::span<const int> rows, Activations& activations) const;

 private:
  Model(ModelSource source, std::shared_ptr<Backend> backend);
  Result<std::shared_ptr<float>> take_vector(const MatrixView& view) const;
  // Whether the backend looks at a matrix in the source again, although it has copied it.
  enum class Later { kRead, kUnused };
  Result<std::unique_ptr<Weight>> take_matrix(MatrixView& view, Later later) const;
  Status take_layer(LayerTensors& tensors, LayerWeights& layer) const;
  void attention_block(const LayerWeights& layer, int index, int rows, std::span<const BatchSequence> batch,
                       Activations& a, const QueryProbe& probe) const;
  void ffn_block(const LayerWeights& layer, int rows, Activations& a) const;
  void reserve_rope(std::span<const BatchSequence> batch);

  ModelSource source_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<Weight> embedding_, output_;  // output_ is null where tied
  std::shared_ptr<float> output_norm_;
  std::vector<LayerWeights> layers_;
  RopeTables rope_;
};

}  // namespace kvfold
