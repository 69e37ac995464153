#include "engine/model.h"

#include <algorithm>
#include <array>

#include "kernels/formats/formats.h"

namespace kvfold {

Model::Model(ModelSource source, std::shared_ptr<Backend> backend)
    : source_(std::move(source)), backend_(std::move(backend)), rope_(source_.config) {}

Result<std::shared_ptr<Model>> Model::create(ModelSource source, std::shared_ptr<Backend> backend) {
  std::shared_ptr<Model> model(new Model(std::move(source), std::move(backend)));
  ModelSource& from = model->source_;
  if (from.tied_output) {
    KVFOLD_ASSIGN_OR_RETURN(model->embedding_,
                            model->take_matrix(from.embedding, Later::kRead));  // rows of it
  } else {
    KVFOLD_RETURN_IF_ERROR(check_finite(from, from.embedding));
    KVFOLD_ASSIGN_OR_RETURN(model->embedding_, model->backend_->prepare_table(from.embedding));
  }
  KVFOLD_ASSIGN_OR_RETURN(model->output_norm_, model->take_vector(from.output_norm));
  if (!from.tied_output) {
    KVFOLD_ASSIGN_OR_RETURN(model->output_, model->take_matrix(from.output, Later::kUnused));
  }
  for (LayerTensors& tensors : from.layers)
    KVFOLD_RETURN_IF_ERROR(model->take_layer(tensors, model->layers_.emplace_back()));
  return model;
}

Result<std::shared_ptr<float>> Model::take_vector(const MatrixView& view) const {
  if (view.data == nullptr) return std::shared_ptr<float>();
  KVFOLD_RETURN_IF_ERROR(check_finite(source_, view));
  const auto count = static_cast<size_t>(view.rows * view.columns);
  std::vector<float> values(count);
  format_info(view.type).decode(view.data, values.data(), count);
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<float> out, backend_->allocate(count));
  backend_->upload(values, out.get());
  return out;
}

// What the backend has copied need not stay in memory twice.
Result<std::unique_ptr<Weight>> Model::take_matrix(MatrixView& view, Later later) const {
  KVFOLD_RETURN_IF_ERROR(check_finite(source_, view));
  KVFOLD_ASSIGN_OR_RETURN(std::unique_ptr<Weight> weight, backend_->prepare(view));
  if (!weight->copied()) return weight;
  if (source_.release) source_.release(view);
  if (later == Later::kUnused && source_.discard && source_.discard(view)) view.data = nullptr;
  return weight;
}

Status Model::take_layer(LayerTensors& tensors, LayerWeights& layer) const {
  const std::array vectors = {std::pair{&tensors.attention_norm, &layer.attention_norm},
                              std::pair{&tensors.bq, &layer.bq},
                              std::pair{&tensors.bk, &layer.bk},
                              std::pair{&tensors.bv, &layer.bv},
                              std::pair{&tensors.bo, &layer.bo},
                              std::pair{&tensors.q_norm, &layer.q_norm},
                              std::pair{&tensors.k_norm, &layer.k_norm},
                              std::pair{&tensors.ffn_norm, &layer.ffn_norm}};
  for (const auto& [from, to] : vectors) {
    KVFOLD_ASSIGN_OR_RETURN(*to, take_vector(*from));
  }
  const std::array matrices = {std::pair{&tensors.wq, &layer.wq},     std::pair{&tensors.wk, &layer.wk},
                               std::pair{&tensors.wv, &layer.wv},     std::pair{&tensors.wo, &layer.wo},
                               std::pair{&tensors.gate, &layer.gate}, std::pair{&tensors.up, &layer.up},
                               std::pair{&tensors.down, &layer.down}};
  for (const auto& [from, to] : matrices) {
    KVFOLD_ASSIGN_OR_RETURN(*to, take_matrix(*from, Later::kUnused));
  }
  return {};
}

std::array<int64_t, 8> Model::activation_floats(const ModelConfig& c, int rows) {
  const int64_t q = int64_t{c.heads} * c.head_dim;
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  return {rows * int64_t{c.model_dim},
          rows * q,
          rows * q,
          rows * kv,
          rows * kv,
          rows * int64_t{c.ffn_dim},
          int64_t{kLogitRows} * c.model_dim,
          int64_t{kLogitRows} * c.vocab_size};
}

Result<Activations> Model::make_activations(int rows) const {
  Activations a;
  a.rows = rows;
  const std::array buffers = {&a.x, &a.q, &a.attended, &a.k, &a.v, &a.gated, &a.normed, &a.logits};
  const auto floats = activation_floats(config(), rows);
  for (size_t i = 0; i < buffers.size(); ++i) {
    KVFOLD_ASSIGN_OR_RETURN(*buffers[i], backend_->allocate(static_cast<size_t>(floats[i])));
  }
  return a;
}

// Positions may be anything; the tables must reach from every token to every row that it sees.
void Model::reserve_rope(std::span<const BatchSequence> batch) {
  for (const BatchSequence& sequence : batch) {
    const std::vector<int32_t>& positions = sequence.cache->rows().positions;
    const auto [low, high] = std::minmax_element(positions.begin(), positions.end());
    // A query is turned to the multiple of 32 below a key's position.
    rope_.reserve(static_cast<int64_t>(*high) - *low + kPageRows);
  }
}

// The pre-norm transformer of Llama (Touvron et al. 2023): each layer adds attention and then a gated
// feed-forward network to the residual stream.
void Model::forward(std::span<const TokenId> tokens, std::span<const BatchSequence> batch, Activations& a,
                    const QueryProbe& probe) {
  const auto rows = static_cast<int>(tokens.size());
  KVFOLD_CHECK(rows <= a.rows);
  reserve_rope(batch);
  backend_->begin_pass(
      {tokens, batch, rope_.view(), config().heads, this, a.x.get(), static_cast<bool>(probe)});
  backend_->embed(*embedding_, tokens, a.x.get());
  for (int i = 0; i < config().layers; ++i) {
    backend_->begin_layer(i);
    attention_block(layers_[i], i, rows, batch, a, probe);
    ffn_block(layers_[i], rows, a);
  }
  backend_->end_pass();
}

void Model::attention_block(const LayerWeights& layer, int index, int rows,
                            std::span<const BatchSequence> batch, Activations& a,
                            const QueryProbe& probe) const {
  const ModelConfig& c = config();
  const std::array qkv = {Linear{layer.wq.get(), layer.bq.get(), a.q.get()},
                          Linear{layer.wk.get(), layer.bk.get(), a.k.get()},
                          Linear{layer.wv.get(), layer.bv.get(), a.v.get()}};
  backend_->linear(qkv, {a.x.get(), rows, layer.attention_norm.get(), c.norm_epsilon});
  if (layer.q_norm)
    backend_->rms_norm(a.q.get(), rows * c.heads, c.head_dim, layer.q_norm.get(), c.norm_epsilon, a.q.get());
  if (layer.k_norm)
    backend_->rms_norm(a.k.get(), rows * c.kv_heads, c.head_dim, layer.k_norm.get(), c.norm_epsilon,
                       a.k.get());
  // Keys go to the cache as they are: RoPE turns them when they are read, by whatever position the row has
  // then.
  backend_->store_kv(batch, index, a.k.get(), a.v.get());
  if (probe) probe(index, batch, a.q.get());
  backend_->attention(batch, index, {c.heads, c.kv_heads, c.head_dim}, rope_.view(), a.q.get(),
                      a.attended.get());
  const std::array out = {Linear{layer.wo.get(), layer.bo.get(), a.x.get(), true}};
  backend_->linear(out, {a.attended.get(), rows});
}

void Model::ffn_block(const LayerWeights& layer, int rows, Activations& a) const {
  const ModelConfig& c = config();
  const int step = std::min(backend_->ffn_rows(), rows);
  for (int row = 0; row < rows; row += step) {
    const int count = std::min(step, rows - row);
    float* x = a.x.get() + static_cast<int64_t>(row) * c.model_dim;
    backend_->gated_linear(*layer.gate, *layer.up, {x, count, layer.ffn_norm.get(), c.norm_epsilon},
                           a.gated.get());
    const std::array down = {Linear{layer.down.get(), nullptr, x, true}};
    backend_->linear(down, {a.gated.get(), count});
  }
}

void Model::logits(std::span<const int> rows, Activations& a) const {
  const ModelConfig& c = config();
  KVFOLD_CHECK(rows.size() <= kLogitRows);
  for (size_t i = 0; i < rows.size(); ++i)
    backend_->rms_norm(a.x.get() + static_cast<int64_t>(rows[i]) * c.model_dim, 1, c.model_dim,
                       output_norm_.get(), c.norm_epsilon,
                       a.normed.get() + static_cast<int64_t>(i) * c.model_dim);
  const std::array out = {Linear{output_ ? output_.get() : embedding_.get(), nullptr, a.logits.get()}};
  backend_->linear(out, {a.normed.get(), static_cast<int>(rows.size())});
}

}  // namespace kvfold
