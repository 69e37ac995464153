// A frozen model that reads a text behind given cache rows, and the gradient of how well it predicts the text
// with respect to those rows: what a projector from another model's cache is trained on.
//
// Everything is f32; weights are decoded as they are met and get no gradients. Keys of the rows are before
// RoPE and take the positions 0, 1, ...; the text follows.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/model_source.h"
#include "engine/status.h"
#include "engine/train/operations.h"

namespace kvfold {

// One text behind one context.
struct Reading {
  // [context][2 * layers * kv_heads * head_dim]: of each row all layers, a layer's K of all heads and then
  // its V.
  const float* rows = nullptr;
  int context = 0;
  std::span<const TokenId> tokens;  // the first is fed, the others are fed and scored; at least 2
  float* gradient = nullptr;        // like rows, overwritten: d (loss of the batch) / d rows; may be null
  double nll = 0;                   // out: summed over the scored tokens, nats
  // Where the states that give the logits go, [scored][model_dim], or null.
  float* states = nullptr;
  // States of another reading of the same tokens, whose distributions are to be matched, or null.
  const float* teacher = nullptr;
  int scored() const { return static_cast<int>(tokens.size()) - 1; }
};

class Receiver {
 public:
  // Where the weights are decoded: as they are met, or once, into memory of their own (decoded_bytes()).
  enum class Weights { kAsMet, kOnce };

  // REQUIRES: `gemm` outlives this and is used by nobody else meanwhile; the source's storage stays, and no
  // matrix was discarded.
  static std::unique_ptr<Receiver> create(const ModelSource& source, Gemm& gemm, Weights weights);
  static int64_t decoded_bytes(const ModelSource& source);

  // Reads all as one batch; returns the mean NLL over all its scored tokens. That is the loss; of readings
  // with a teacher, `share` of it is the cross-entropy with the teacher's distribution in place of the token
  // (Hinton et al. 2015, arXiv:1503.02531). Gradients are made where at least one reading wants them. Errors:
  // a token outside the vocabulary, fewer than two tokens. A reading's numbers do not depend on the others in
  // the batch, but for the mean's weight in the gradients.
  Result<double> read(std::span<Reading> batch, float share = 0);

  // Bytes that reading `tokens` tokens behind `rows` context rows takes, over all sequences of a batch whose
  // longest sees `longest` rows.
  static int64_t bytes(const ModelConfig& config, int64_t tokens, int64_t rows, int64_t longest);

 private:
  struct Layer {
    std::vector<float> attention_norm, ffn_norm, bq, bk, bv, bo, q_norm, k_norm;
  };
  // What the way back needs of a layer's way forward; rows are the batch's tokens.
  struct Kept {
    std::vector<float> x;             // [tokens][model_dim], what came in
    std::vector<float> q_raw, k_raw;  // before the norms of heads, where there are such
    std::vector<float> q;             // [tokens][heads * head_dim], turned
    std::vector<float> keys,
        values;                   // for each sequence, [kv_heads][context + tokens][head_dim]; keys turned
    std::vector<float> weights;   // for each sequence, [heads][tokens][context + tokens]
    std::vector<float> middle;    // [tokens][model_dim], behind attention
    std::vector<float> gate, up;  // [tokens][ffn_dim]
  };
  struct Sequence {
    int first;       // of its tokens in the batch
    int tokens;      // that are fed
    int64_t row;     // of its first row, context and tokens, among all sequences'
    int64_t weight;  // where its attention weights begin
  };

  Receiver(const ModelSource& source, Gemm& gemm) : source_(source), gemm_(&gemm), rope_(source.config) {}
  void decode_weights();
  Status check(std::span<const Reading> batch) const;
  void plan(std::span<const Reading> batch);
  void embed(std::span<const Reading> batch);
  void norm(const std::vector<float>& x, const std::vector<float>& weight, std::vector<float>& out) const;
  void attention(std::span<const Reading> batch, int layer);
  void gather(std::span<const Reading> batch, int layer, const std::vector<float>& k,
              const std::vector<float>& v);
  void ffn(int layer);
  double score(std::span<Reading> batch, bool gradients, float share);
  void score_rows(std::span<const float* const> teachers, std::span<const TokenId> wanted, float share,
                  float weight, float* nll);
  void ffn_back(int layer);
  void attention_back(std::span<Reading> batch, int layer);
  void scatter(std::span<Reading> batch, int layer, std::vector<float>& k, std::vector<float>& v);
  AttentionGroup group(std::span<const Reading> batch, int layer, int sequence, int head);

  ModelSource source_;
  std::vector<std::vector<float>> decoded_;
  Gemm* gemm_;
  RopeTables rope_;
  std::vector<Layer> layers_;
  std::vector<float> output_norm_;

  // Of the batch being read.
  std::vector<Sequence> sequences_;
  int tokens_ = 0;
  int64_t rows_ = 0, weights_ = 0;
  std::vector<Kept> kept_;
  std::vector<float> x_;         // [tokens][model_dim]: the residual stream, on the way back its gradient
  std::vector<float> normed_;    // [tokens][model_dim]
  std::vector<float> wide_;      // [tokens][ffn_dim]
  std::vector<float> attended_;  // [tokens][heads * head_dim]
  std::vector<float> k_, v_;     // [tokens][kv_heads * head_dim]
  std::vector<float> key_gradients_, value_gradients_;  // as Kept::keys
  std::vector<float> query_gradients_;                  // as Kept::q
  std::vector<float> logits_, teacher_logits_, teacher_states_;
  std::vector<GemmScratch> scratch_;        // [threads]
  std::vector<std::vector<float>> memory_;  // [threads]
};

}  // namespace kvfold
