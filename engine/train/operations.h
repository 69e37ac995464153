// The parts of a transformer layer that are no products with weights, forward and back, over f32 rows. Each
// gradient is that of the sum of its outputs times given numbers (the gradients of the outputs).
#pragma once

#include <vector>

#include "engine/rope.h"
#include "engine/train/gemm.h"

namespace kvfold {

// y = x * w / sqrt(mean(x^2) + epsilon) for each of `rows` rows of `columns` (RMSNorm, Zhang and Sennrich
// 2019): adds to x_gradient. x_gradient may be y_gradient where `add` is false: then it is overwritten.
void rms_norm_gradient(const float* x, const float* weight, int64_t rows, int columns, float epsilon,
                       const float* y_gradient, bool add, float* x_gradient);

// Turns a head's vector by a position >= 0, or back: what a rotation does to a vector its transpose undoes
// for the gradient. REQUIRES: the position is within the table.
void turn(const RopeView& rope, int32_t position, bool back, float* head);

// One sequence and one KV head: `tokens` tokens behind `context` rows, and the `heads` query heads that share
// the KV head. Token t sees rows 0 .. context + t.
struct AttentionGroup {
  int context, tokens, heads, head_dim;
  const float* keys;    // [context + tokens][head_dim], turned
  const float* values;  // [context + tokens][head_dim]
  const float* q;       // token t's head h at q + t * q_stride + h * head_dim, turned
  int64_t q_stride;
  float* weights;  // [heads][tokens][context + tokens]: softmax of the scores, 0 where a token does not see
  int rows() const { return context + tokens; }
};

// out, laid out as q. Fills in `weights`.
void attend(const CpuKernels& kernels, GemmScratch& scratch, const AttentionGroup& group, float* out);

// From the gradient of `out` (laid out as q) to those of keys and values, which are added to, and of q, laid
// out as q, which is overwritten.
struct AttentionGradients {
  const float* out;
  float *keys, *values;
  float* q;
};
void attend_gradient(const CpuKernels& kernels, GemmScratch& scratch, const AttentionGroup& group,
                     const AttentionGradients& gradients, std::vector<float>& memory);

// Cross-entropy of one row of logits [vocabulary] against `token`, in nats; the logits become the gradient of
// `weight` times it.
float cross_entropy(const CpuKernels& kernels, float* logits, int64_t vocabulary, int64_t token,
                    float weight);

}  // namespace kvfold
