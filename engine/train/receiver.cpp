#include "engine/train/receiver.h"

#include <fmt/core.h>

#include <algorithm>

#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

constexpr int kLogitRows = 128;  // made at once: 78 MB for Qwen's vocabulary

int row_width(const ModelConfig& c) { return 2 * c.layers * c.kv_heads * c.head_dim; }

std::vector<float> decode_vector(const MatrixView& view) {
  if (view.data == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(view.rows * view.columns));
  format_info(view.type).decode(view.data, values.data(), values.size());
  return values;
}

// All that enter products.
std::vector<MatrixView*> matrices(ModelSource& source) {
  std::vector<MatrixView*> out = {&source.output};
  for (LayerTensors& t : source.layers)
    out.insert(out.end(), {&t.wq, &t.wk, &t.wv, &t.wo, &t.gate, &t.up, &t.down});
  return out;
}

void add_bias(std::vector<float>& y, const std::vector<float>& bias, int64_t rows) {
  if (bias.empty()) return;
  for (int64_t r = 0; r < rows; ++r)
    for (size_t i = 0; i < bias.size(); ++i) y[static_cast<size_t>(r) * bias.size() + i] += bias[i];
}

}  // namespace

std::unique_ptr<Receiver> Receiver::create(const ModelSource& source, Gemm& gemm, Weights weights) {
  std::unique_ptr<Receiver> receiver(new Receiver(source, gemm));
  for (const MatrixView* view : matrices(receiver->source_)) KVFOLD_CHECK(view->data != nullptr);
  receiver->output_norm_ = decode_vector(source.output_norm);
  for (const LayerTensors& t : source.layers)
    receiver->layers_.push_back({decode_vector(t.attention_norm), decode_vector(t.ffn_norm),
                                 decode_vector(t.bq), decode_vector(t.bk), decode_vector(t.bv),
                                 decode_vector(t.bo), decode_vector(t.q_norm), decode_vector(t.k_norm)});
  receiver->kept_.resize(source.layers.size());
  receiver->scratch_.resize(static_cast<size_t>(gemm.pool().threads()));
  receiver->memory_.resize(static_cast<size_t>(gemm.pool().threads()));
  if (weights == Weights::kOnce) receiver->decode_weights();
  return receiver;
}

int64_t Receiver::decoded_bytes(const ModelSource& source) {
  ModelSource copy = source;
  int64_t floats = 0;
  for (const MatrixView* view : matrices(copy)) floats += view->rows * view->columns;
  return floats * static_cast<int64_t>(sizeof(float));
}

void Receiver::decode_weights() {
  for (MatrixView* view : matrices(source_)) {
    const FormatInfo& format = format_info(view->type);
    const int64_t row_bytes = view->columns / format.block_elements * format.block_bytes;
    std::vector<float>& values = decoded_.emplace_back(static_cast<size_t>(view->rows * view->columns));
    gemm_->pool().run(view->rows, [&](int64_t begin, int64_t end, int) {
      format.decode(view->data + begin * row_bytes, values.data() + begin * view->columns,
                    static_cast<size_t>((end - begin) * view->columns));
    });
    view->type = WeightType::kF32;
    view->data = reinterpret_cast<const std::byte*>(values.data());
  }
}

int64_t Receiver::bytes(const ModelConfig& c, int64_t tokens, int64_t rows, int64_t longest) {
  const int64_t q = int64_t{c.heads} * c.head_dim;
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  const int64_t norms = c.architecture == "qwen3" ? q + kv : 0;
  const int64_t layer =
      tokens * (2 * int64_t{c.model_dim} + 2 * int64_t{c.ffn_dim} + q + norms + c.heads * longest) +
      2 * rows * kv;
  const int64_t once = tokens * (2 * int64_t{c.model_dim} + c.ffn_dim + 2 * q + 2 * kv) + 2 * rows * kv +
                       std::min<int64_t>(tokens, kLogitRows) * c.vocab_size;
  // A product's left side is packed whole: the largest is that of the logits' gradient. And the teacher's
  // logits.
  const int64_t packed = 2 * std::min<int64_t>(tokens, kLogitRows) * c.vocab_size;
  return (c.layers * layer + once + packed) * static_cast<int64_t>(sizeof(float));
}

Status Receiver::check(std::span<const Reading> batch) const {
  for (const Reading& reading : batch) {
    if (reading.tokens.size() < 2)
      return Status::error(
          fmt::format("a text of {} tokens: at least 2 are needed to score one", reading.tokens.size()));
    for (const TokenId token : reading.tokens)
      if (token < 0 || token >= source_.config.vocab_size)
        return Status::error(
            fmt::format("token {} is not in the vocabulary of {}", token, source_.config.vocab_size));
  }
  return {};
}

void Receiver::plan(std::span<const Reading> batch) {
  const ModelConfig& c = source_.config;
  sequences_.clear();
  tokens_ = 0;
  rows_ = weights_ = 0;
  for (const Reading& reading : batch) {
    const int64_t rows = reading.context + reading.scored();
    sequences_.push_back({tokens_, reading.scored(), rows_, weights_});
    tokens_ += reading.scored();
    rows_ += rows;
    weights_ += int64_t{c.heads} * reading.scored() * rows;
    rope_.reserve(rows);
  }
  const auto tokens = static_cast<size_t>(tokens_);
  const size_t q = tokens * c.heads * c.head_dim;
  const size_t kv = tokens * c.kv_heads * c.head_dim;
  const size_t lanes = static_cast<size_t>(rows_) * c.kv_heads * c.head_dim;
  for (size_t l = 0; l < kept_.size(); ++l) {
    Kept& kept = kept_[l];
    for (std::vector<float>* v : {&kept.x, &kept.middle}) v->resize(tokens * c.model_dim);
    for (std::vector<float>* v : {&kept.gate, &kept.up}) v->resize(tokens * c.ffn_dim);
    for (std::vector<float>* v : {&kept.keys, &kept.values}) v->resize(lanes);
    kept.q.resize(q);
    kept.weights.resize(static_cast<size_t>(weights_));
    if (!layers_[l].q_norm.empty()) kept.q_raw.resize(q);
    if (!layers_[l].k_norm.empty()) kept.k_raw.resize(kv);
  }
  for (std::vector<float>* v : {&x_, &normed_}) v->resize(tokens * c.model_dim);
  for (std::vector<float>* v : {&k_, &v_}) v->resize(kv);
  for (std::vector<float>* v : {&attended_, &query_gradients_}) v->resize(q);
  wide_.resize(tokens * c.ffn_dim);
}

void Receiver::embed(std::span<const Reading> batch) {
  const MatrixView& table = source_.embedding;
  const FormatInfo& format = format_info(table.type);
  const int64_t row_bytes = table.columns / format.block_elements * format.block_bytes;
  float* out = x_.data();
  for (const Reading& reading : batch)
    for (const TokenId token : reading.tokens.first(static_cast<size_t>(reading.scored()))) {
      format.decode(table.data + token * row_bytes, out, static_cast<size_t>(table.columns));
      out += table.columns;
    }
}

// Each row of weight.size() values by itself.
void Receiver::norm(const std::vector<float>& x, const std::vector<float>& weight,
                    std::vector<float>& out) const {
  const auto columns = static_cast<int64_t>(weight.size());
  gemm_->pool().run(static_cast<int64_t>(x.size()) / columns, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      gemm_->kernels().rms_norm(x.data() + r * columns, weight.data(), static_cast<int>(columns),
                                source_.config.norm_epsilon, out.data() + r * columns);
  });
}

AttentionGroup Receiver::group(std::span<const Reading> batch, int layer, int sequence, int head) {
  const ModelConfig& c = source_.config;
  Kept& kept = kept_[layer];
  const Sequence& s = sequences_[sequence];
  const int context = batch[sequence].context;
  const int64_t rows = context + s.tokens;
  const int heads = c.heads / c.kv_heads;
  const int64_t lane = (s.row * c.kv_heads + head * rows) * c.head_dim;
  const int64_t q_stride = int64_t{c.heads} * c.head_dim;
  return {context,
          s.tokens,
          heads,
          c.head_dim,
          kept.keys.data() + lane,
          kept.values.data() + lane,
          kept.q.data() + s.first * q_stride + int64_t{head} * heads * c.head_dim,
          q_stride,
          kept.weights.data() + s.weight + int64_t{head} * heads * s.tokens * rows};
}

// Puts the context's rows and the tokens' own side by side, by lane, keys turned; and turns the queries.
void Receiver::gather(std::span<const Reading> batch, int layer, const std::vector<float>& k,
                      const std::vector<float>& v) {
  const ModelConfig& c = source_.config;
  Kept& kept = kept_[layer];
  const RopeView rope = rope_.view();
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  const auto sequences = static_cast<int64_t>(sequences_.size());
  gemm_->pool().run(sequences * c.kv_heads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const auto sequence = static_cast<int>(i / c.kv_heads);
      const auto head = static_cast<int>(i % c.kv_heads);
      const Sequence& s = sequences_[sequence];
      const Reading& reading = batch[sequence];
      const int64_t rows = reading.context + s.tokens;
      const int64_t lane = (s.row * c.kv_heads + head * rows) * c.head_dim;
      for (int r = 0; r < rows; ++r) {
        const bool own = r >= reading.context;
        const int64_t at =
            (own ? (s.first + r - reading.context) * kv : int64_t{r} * row_width(c) + 2 * layer * kv) +
            int64_t{head} * c.head_dim;
        const float* from_k = (own ? k.data() : reading.rows) + at;
        const float* from_v = own ? v.data() + at : from_k + kv;
        float* key = kept.keys.data() + lane + int64_t{r} * c.head_dim;
        std::copy_n(from_k, c.head_dim, key);
        turn(rope, r, false, key);
        std::copy_n(from_v, c.head_dim, kept.values.data() + lane + int64_t{r} * c.head_dim);
      }
      const int heads = c.heads / c.kv_heads;
      for (int t = 0; t < s.tokens; ++t)
        for (int h = head * heads; h < (head + 1) * heads; ++h)
          turn(rope, reading.context + t, false,
               kept.q.data() + (int64_t{s.first + t} * c.heads + h) * c.head_dim);
    }
  });
}

void Receiver::attention(std::span<const Reading> batch, int layer) {
  const ModelConfig& c = source_.config;
  const LayerTensors& w = source_.layers[layer];
  const Layer& own = layers_[layer];
  Kept& kept = kept_[layer];
  kept.x = x_;
  norm(x_, own.attention_norm, normed_);
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  gemm_->forward(normed_.data(), tokens_, w.wq, {kept.q.data(), q_width});
  gemm_->forward(normed_.data(), tokens_, w.wk, {k_.data(), kv_width});
  gemm_->forward(normed_.data(), tokens_, w.wv, {v_.data(), kv_width});
  add_bias(kept.q, own.bq, tokens_);
  add_bias(k_, own.bk, tokens_);
  add_bias(v_, own.bv, tokens_);
  if (!own.q_norm.empty()) {
    kept.q_raw = kept.q;
    norm(kept.q_raw, own.q_norm, kept.q);
  }
  if (!own.k_norm.empty()) {
    kept.k_raw = k_;
    norm(kept.k_raw, own.k_norm, k_);
  }
  gather(batch, layer, k_, v_);
  const auto sequences = static_cast<int64_t>(sequences_.size());
  gemm_->pool().run(sequences * c.kv_heads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const AttentionGroup g =
          group(batch, layer, static_cast<int>(i / c.kv_heads), static_cast<int>(i % c.kv_heads));
      attend(gemm_->kernels(), scratch_[thread], g, attended_.data() + (g.q - kept.q.data()));
    }
  });
  gemm_->forward(attended_.data(), tokens_, w.wo, {x_.data(), c.model_dim, true});
  add_bias(x_, own.bo, tokens_);
}

void Receiver::ffn(int layer) {
  const ModelConfig& c = source_.config;
  const LayerTensors& w = source_.layers[layer];
  Kept& kept = kept_[layer];
  kept.middle = x_;
  norm(x_, layers_[layer].ffn_norm, normed_);
  gemm_->forward(normed_.data(), tokens_, w.gate, {kept.gate.data(), c.ffn_dim});
  gemm_->forward(normed_.data(), tokens_, w.up, {kept.up.data(), c.ffn_dim});
  gemm_->pool().run(tokens_, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * c.ffn_dim;
    gemm_->kernels().swiglu(kept.gate.data() + at, kept.up.data() + at,
                            static_cast<int>((end - begin) * c.ffn_dim), wide_.data() + at);
  });
  gemm_->forward(wide_.data(), tokens_, w.down, {x_.data(), c.model_dim, true});
}

// Logits of the rows become gradients; nll [rows]. teachers [rows]: states, or null.
void Receiver::score_rows(std::span<const float* const> teachers, std::span<const TokenId> wanted,
                          float share, float weight, float* nll) {
  const ModelConfig& c = source_.config;
  const auto rows = static_cast<int64_t>(wanted.size());
  const int64_t vocabulary = c.vocab_size;
  const bool taught =
      share > 0 && std::any_of(teachers.begin(), teachers.end(), [](const float* t) { return t; });
  if (taught) {
    teacher_states_.assign(static_cast<size_t>(rows * c.model_dim), 0.0F);
    teacher_logits_.resize(static_cast<size_t>(rows * vocabulary));
    for (int64_t r = 0; r < rows; ++r)
      if (teachers[r] != nullptr) std::copy_n(teachers[r], c.model_dim, &teacher_states_[r * c.model_dim]);
    gemm_->forward(teacher_states_.data(), rows, source_.output, {teacher_logits_.data(), vocabulary});
  }
  gemm_->pool().run(rows, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      float* logits = logits_.data() + r * vocabulary;
      const bool soft = taught && teachers[r] != nullptr;
      nll[r] = cross_entropy(gemm_->kernels(), logits, vocabulary, wanted[r], weight);
      if (!soft) continue;
      // From p - token to p - (1 - share) token - share teacher.
      float* teacher = teacher_logits_.data() + r * vocabulary;
      gemm_->kernels().softmax(teacher, vocabulary);
      for (int64_t i = 0; i < vocabulary; ++i) logits[i] -= weight * share * teacher[i];
      logits[wanted[r]] += weight * share;
    }
  });
}

// The mean NLL; x_ becomes the gradient of what the last layer left there.
double Receiver::score(std::span<Reading> batch, bool gradients, float share) {
  const ModelConfig& c = source_.config;
  norm(x_, output_norm_, normed_);
  std::vector<TokenId> wanted;
  std::vector<const float*> teachers;
  for (size_t i = 0; i < batch.size(); ++i) {
    const Reading& reading = batch[i];
    wanted.insert(wanted.end(), reading.tokens.begin() + 1, reading.tokens.end());
    for (int64_t t = 0; t < reading.scored(); ++t)
      teachers.push_back(reading.teacher == nullptr ? nullptr : reading.teacher + t * c.model_dim);
    if (reading.states != nullptr)
      std::copy_n(&normed_[int64_t{sequences_[i].first} * c.model_dim],
                  int64_t{reading.scored()} * c.model_dim, reading.states);
  }
  std::vector<float> nll(wanted.size());
  const float weight = 1.0F / static_cast<float>(tokens_);
  logits_.resize(static_cast<size_t>(std::min(tokens_, kLogitRows)) * c.vocab_size);
  for (int first = 0; first < tokens_; first += kLogitRows) {
    const auto rows = static_cast<size_t>(std::min(kLogitRows, tokens_ - first));
    float* normed = normed_.data() + int64_t{first} * c.model_dim;
    gemm_->forward(normed, rows, source_.output, {logits_.data(), c.vocab_size});
    score_rows(std::span(teachers).subspan(first, rows), std::span(wanted).subspan(first, rows), share,
               weight, &nll[first]);
    if (gradients) gemm_->backward(logits_.data(), rows, source_.output, {normed, c.model_dim});
  }
  if (gradients)
    rms_norm_gradient(x_.data(), output_norm_.data(), tokens_, c.model_dim, c.norm_epsilon, normed_.data(),
                      false, x_.data());
  double total = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    batch[i].nll = 0;
    for (int t = 0; t < sequences_[i].tokens; ++t) batch[i].nll += nll[sequences_[i].first + t];
    total += batch[i].nll;
  }
  return total / tokens_;
}

void Receiver::ffn_back(int layer) {
  const ModelConfig& c = source_.config;
  const LayerTensors& w = source_.layers[layer];
  Kept& kept = kept_[layer];
  gemm_->backward(x_.data(), tokens_, w.down, {wide_.data(), c.ffn_dim});
  gemm_->pool().run(tokens_, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * c.ffn_dim;
    gemm_->kernels().swiglu_gradient(wide_.data() + at, static_cast<int>((end - begin) * c.ffn_dim),
                                     kept.gate.data() + at, kept.up.data() + at);
  });
  gemm_->backward(kept.gate.data(), tokens_, w.gate, {normed_.data(), c.model_dim});
  gemm_->backward(kept.up.data(), tokens_, w.up, {normed_.data(), c.model_dim, true});
  rms_norm_gradient(kept.middle.data(), layers_[layer].ffn_norm.data(), tokens_, c.model_dim, c.norm_epsilon,
                    normed_.data(), true, x_.data());
}

// Gradients by lane become those of the context's rows and of the tokens' own k and v; those of queries are
// turned back.
void Receiver::scatter(std::span<Reading> batch, int layer, std::vector<float>& k, std::vector<float>& v) {
  const ModelConfig& c = source_.config;
  const RopeView rope = rope_.view();
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  const auto sequences = static_cast<int64_t>(sequences_.size());
  gemm_->pool().run(sequences * c.kv_heads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const auto sequence = static_cast<int>(i / c.kv_heads);
      const auto head = static_cast<int>(i % c.kv_heads);
      const Sequence& s = sequences_[sequence];
      const Reading& reading = batch[sequence];
      const int64_t rows = reading.context + s.tokens;
      const int64_t lane = (s.row * c.kv_heads + head * rows) * c.head_dim;
      for (int r = 0; r < rows; ++r) {
        const bool own = r >= reading.context;
        if (!own && reading.gradient == nullptr) continue;
        const int64_t at =
            (own ? (s.first + r - reading.context) * kv : int64_t{r} * row_width(c) + 2 * layer * kv) +
            int64_t{head} * c.head_dim;
        float* to_k = (own ? k.data() : reading.gradient) + at;
        float* to_v = own ? v.data() + at : to_k + kv;
        std::copy_n(key_gradients_.data() + lane + int64_t{r} * c.head_dim, c.head_dim, to_k);
        turn(rope, r, true, to_k);
        std::copy_n(value_gradients_.data() + lane + int64_t{r} * c.head_dim, c.head_dim, to_v);
      }
      const int heads = c.heads / c.kv_heads;
      for (int t = 0; t < s.tokens; ++t)
        for (int h = head * heads; h < (head + 1) * heads; ++h)
          turn(rope, reading.context + t, true,
               query_gradients_.data() + (int64_t{s.first + t} * c.heads + h) * c.head_dim);
    }
  });
}

void Receiver::attention_back(std::span<Reading> batch, int layer) {
  const ModelConfig& c = source_.config;
  const LayerTensors& w = source_.layers[layer];
  const Layer& own = layers_[layer];
  Kept& kept = kept_[layer];
  gemm_->backward(x_.data(), tokens_, w.wo, {attended_.data(), int64_t{c.heads} * c.head_dim});
  key_gradients_.assign(kept.keys.size(), 0.0F);
  value_gradients_.assign(kept.values.size(), 0.0F);
  const auto sequences = static_cast<int64_t>(sequences_.size());
  gemm_->pool().run(sequences * c.kv_heads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const AttentionGroup g =
          group(batch, layer, static_cast<int>(i / c.kv_heads), static_cast<int>(i % c.kv_heads));
      const int64_t at = g.q - kept.q.data();
      attend_gradient(
          gemm_->kernels(), scratch_[thread], g,
          {attended_.data() + at, key_gradients_.data() + (g.keys - kept.keys.data()),
           value_gradients_.data() + (g.values - kept.values.data()), query_gradients_.data() + at},
          memory_[thread]);
    }
  });
  scatter(batch, layer, k_, v_);
  if (layer == 0) return;  // the tokens' own embeddings get no gradient
  if (!own.q_norm.empty())
    rms_norm_gradient(kept.q_raw.data(), own.q_norm.data(), int64_t{tokens_} * c.heads, c.head_dim,
                      c.norm_epsilon, query_gradients_.data(), false, query_gradients_.data());
  if (!own.k_norm.empty())
    rms_norm_gradient(kept.k_raw.data(), own.k_norm.data(), int64_t{tokens_} * c.kv_heads, c.head_dim,
                      c.norm_epsilon, k_.data(), false, k_.data());
  gemm_->backward(query_gradients_.data(), tokens_, w.wq, {normed_.data(), c.model_dim});
  gemm_->backward(k_.data(), tokens_, w.wk, {normed_.data(), c.model_dim, true});
  gemm_->backward(v_.data(), tokens_, w.wv, {normed_.data(), c.model_dim, true});
  rms_norm_gradient(kept.x.data(), own.attention_norm.data(), tokens_, c.model_dim, c.norm_epsilon,
                    normed_.data(), true, x_.data());
}

Result<double> Receiver::read(std::span<Reading> batch, float share) {
  KVFOLD_RETURN_IF_ERROR(check(batch));
  if (batch.empty()) return 0.0;
  const bool gradients =
      std::any_of(batch.begin(), batch.end(), [](const Reading& r) { return r.gradient != nullptr; });
  plan(batch);
  embed(batch);
  const int layers = source_.config.layers;
  for (int l = 0; l < layers; ++l) {
    attention(batch, l);
    ffn(l);
  }
  const double loss = score(batch, gradients, share);
  for (int l = layers - 1; gradients && l >= 0; --l) {
    ffn_back(l);
    attention_back(batch, l);
  }
  return loss;
}

}  // namespace kvfold
