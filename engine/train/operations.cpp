#include "engine/train/operations.h"

#include <algorithm>
#include <cmath>

#include "engine/status.h"
#include "kernels/cpu/math.h"

namespace kvfold {

// With r = 1 / sqrt(mean(x^2) + e): dx = r * (w dy) - x * r^3 / n * sum(x w dy).
void rms_norm_gradient(const float* x, const float* weight, int64_t rows, int columns, float epsilon,
                       const float* y_gradient, bool add, float* x_gradient) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* in = x + row * columns;
    const float* dy = y_gradient + row * columns;
    float* dx = x_gradient + row * columns;
    float squares[8] = {};
    float products[8] = {};
    for (int i = 0; i < columns; ++i) {
      squares[i % 8] += in[i] * in[i];
      products[i % 8] += in[i] * (weight[i] * dy[i]);
    }
    double square = 0;
    double product = 0;
    for (int l = 0; l < 8; ++l) {
      square += squares[l];
      product += products[l];
    }
    const double r = 1.0 / std::sqrt(square / columns + epsilon);
    const auto scale = static_cast<float>(r);
    const auto along = static_cast<float>(product * r * r * r / columns);
    for (int i = 0; i < columns; ++i) {
      const float d = scale * (weight[i] * dy[i]) - along * in[i];
      dx[i] = add ? dx[i] + d : d;
    }
  }
}

void turn(const RopeView& rope, int32_t position, bool back, float* head) {
  KVFOLD_CHECK(position >= 0 && position < rope.distances);
  const float* cos = rope.query_cos + static_cast<int64_t>(position) * rope.pairs;
  const float* sin = rope.query_sin + static_cast<int64_t>(position) * rope.pairs;
  for (int i = 0; i < rope.pairs; ++i) {
    float& a = head[rope.interleaved ? 2 * i : i];
    float& b = head[rope.interleaved ? 2 * i + 1 : i + rope.pairs];
    const float s = back ? -sin[i] : sin[i];
    const float turned = a * cos[i] - b * s;
    b = a * s + b * cos[i];
    a = turned;
  }
}

void attend(const CpuKernels& kernels, GemmScratch& scratch, const AttentionGroup& g, float* out) {
  const int rows = g.rows();
  const float scale = 1.0F / std::sqrt(static_cast<float>(g.head_dim));
  const Strided keys = {g.keys, g.head_dim};
  for (int h = 0; h < g.heads; ++h) {
    float* weights = g.weights + static_cast<int64_t>(h) * g.tokens * rows;
    multiply_alone(kernels, scratch, {g.q + static_cast<int64_t>(h) * g.head_dim, g.q_stride},
                   keys.transposed(), {g.tokens, rows, g.head_dim}, {weights, rows});
    for (int t = 0; t < g.tokens; ++t) {
      float* row = weights + static_cast<int64_t>(t) * rows;
      const int seen = g.context + t + 1;
      for (int i = 0; i < seen; ++i) row[i] *= scale;
      kernels.softmax(row, seen);
      std::fill(row + seen, row + rows, 0.0F);
    }
    multiply_alone(kernels, scratch, {weights, rows}, {g.values, g.head_dim}, {g.tokens, g.head_dim, rows},
                   {out + static_cast<int64_t>(h) * g.head_dim, g.q_stride});
  }
}

void attend_gradient(const CpuKernels& kernels, GemmScratch& scratch, const AttentionGroup& g,
                     const AttentionGradients& gradients, std::vector<float>& memory) {
  const int rows = g.rows();
  const float scale = 1.0F / std::sqrt(static_cast<float>(g.head_dim));
  memory.resize(static_cast<size_t>(g.tokens) * rows);
  float* scores = memory.data();  // gradients of the weights, then of the scores
  for (int h = 0; h < g.heads; ++h) {
    const float* weights = g.weights + static_cast<int64_t>(h) * g.tokens * rows;
    const Strided out = {gradients.out + static_cast<int64_t>(h) * g.head_dim, g.q_stride};
    const Strided q = {g.q + static_cast<int64_t>(h) * g.head_dim, g.q_stride};
    multiply_alone(kernels, scratch, Strided{weights, rows}.transposed(), out, {rows, g.head_dim, g.tokens},
                   {gradients.values, g.head_dim, true});
    multiply_alone(kernels, scratch, out, Strided{g.values, g.head_dim}.transposed(),
                   {g.tokens, rows, g.head_dim}, {scores, rows});
    for (int t = 0; t < g.tokens; ++t) {
      float* row = scores + static_cast<int64_t>(t) * rows;
      const float* w = weights + static_cast<int64_t>(t) * rows;
      const float mean = dot16(row, w, rows);
      for (int i = 0; i < rows; ++i) row[i] = w[i] * (row[i] - mean) * scale;
    }
    multiply_alone(kernels, scratch, {scores, rows}, {g.keys, g.head_dim}, {g.tokens, g.head_dim, rows},
                   {gradients.q + static_cast<int64_t>(h) * g.head_dim, g.q_stride});
    multiply_alone(kernels, scratch, Strided{scores, rows}.transposed(), q, {rows, g.head_dim, g.tokens},
                   {gradients.keys, g.head_dim, true});
  }
}

float cross_entropy(const CpuKernels& kernels, float* logits, int64_t vocabulary, int64_t token,
                    float weight) {
  const float wanted = logits[token];
  const float normaliser = kernels.softmax(logits, vocabulary);
  logits[token] -= 1.0F;
  for (int64_t i = 0; i < vocabulary; ++i) logits[i] *= weight;
  return normaliser - wanted;
}

}  // namespace kvfold
