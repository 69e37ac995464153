#include "engine/train/projector_pass.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "engine/kv/ridge_projector.h"

namespace kvfold {
namespace {

float sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }

void silu(const std::vector<float>& in, std::vector<float>& out, ThreadPool& pool) {
  out.resize(in.size());
  pool.run(static_cast<int64_t>(in.size()), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) out[i] = in[i] * sigmoid(in[i]);
  });
}

// The gradient behind silu becomes the one before it.
void silu_back(const float* before, float* gradient, int64_t count, ThreadPool& pool) {
  pool.run(count, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float s = sigmoid(before[i]);
      gradient[i] *= s * (1.0F + before[i] * (1.0F - s));
    }
  });
}

const float* values(const ProjectorData& data, const char* name) { return data.tensors.at(name).data.data(); }

float* find(const ProjectorPass::Gradients& gradients, const char* name) {
  const auto at = gradients.find(name);
  return at == gradients.end() ? nullptr : at->second;
}

void add_columns(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; ++i) to[i] += from[r * columns + i];
}

// out [rows][weight rows] = x weight^T + bias.
void affine(Gemm& gemm, const float* x, int64_t rows, int64_t columns, const float* weight, const float* bias,
            int64_t outputs, float* out) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(bias, outputs, out + r * outputs);
  gemm.multiply({x, columns}, Strided{weight, columns}.transposed(), {rows, outputs, columns},
                {out, outputs, true});
}

}  // namespace

Result<ProjectorPass> ProjectorPass::create(const ProjectorData& data) {
  ProjectorPass pass;
  KVFOLD_RETURN_IF_ERROR(pass.check(data));
  return pass;
}

Status ProjectorPass::check(const ProjectorData& data) {
  source_ = data.source.shape;
  target_ = data.target.shape;
  in_ = row_width(source_);
  out_ = row_width(target_);
  block_ = int64_t{target_.kv_heads} * target_.head_dim;
  if (data.has("ridge.weight"))
    return Status::error(
        "projector: tensor 'ridge.weight': of the kinds mlp and fuser, and of what is trained, "
        "'ridge.down' and 'ridge.up' are expected in its place");
  KVFOLD_RETURN_IF_ERROR(check_ridge_tensors(data));
  rank_ = data.tensors.at("ridge.down").shape[0];
  mlp_ = data.kind == "mlp";
  fuser_ = data.kind == "fuser";
  if (mlp_) {
    const auto bias = data.tensors.find("mlp.in_bias");
    hidden_ = bias == data.tensors.end() ? 0 : static_cast<int64_t>(bias->second.data.size());
    KVFOLD_RETURN_IF_ERROR(data.tensor("mlp.in_bias", {hidden_}).status());
    KVFOLD_RETURN_IF_ERROR(data.tensor("mlp.in", {hidden_, rank_}).status());
    KVFOLD_RETURN_IF_ERROR(data.tensor("mlp.out", {out_, hidden_}).status());
  }
  if (fuser_) {
    const int64_t groups = 2 * int64_t{target_.layers};
    const auto in = data.tensors.find("fuser.in");
    if (in != data.tensors.end() && in->second.shape.size() == 3) {
      hidden_ = in->second.shape[1];
      inputs_ = in->second.shape[2];
    }
    const int64_t layer = 2 * int64_t{source_.kv_heads} * source_.head_dim;
    const int64_t window = (inputs_ - block_) / layer;
    if (hidden_ < 1 || inputs_ != block_ + window * layer || window < 1 || window > source_.layers)
      return Status::error(
          fmt::format("projector: tensor 'fuser.in': expected the shape [{}, hidden, {} + {} for each "
                      "source layer of the window]",
                      groups, block_, layer));
    KVFOLD_RETURN_IF_ERROR(data.tensor("fuser.in", {groups, hidden_, inputs_}).status());
    KVFOLD_RETURN_IF_ERROR(data.tensor("fuser.in_bias", {groups, hidden_}).status());
    KVFOLD_RETURN_IF_ERROR(data.tensor("fuser.heads", {groups, target_.kv_heads, hidden_}).status());
    KVFOLD_RETURN_IF_ERROR(data.tensor("fuser.out", {groups, block_, hidden_}).status());
    KVFOLD_RETURN_IF_ERROR(data.tensor("fuser.gate", {groups}).status());
  }
  return {};
}

int64_t ProjectorPass::window_begin(int target_layer) const {
  const int64_t layer = 2 * int64_t{source_.kv_heads} * source_.head_dim;
  const int64_t window = window_width() / layer;
  const int64_t centre =
      target_.layers == 1
          ? source_.layers - 1
          : (int64_t{target_layer} * (source_.layers - 1) + (target_.layers - 1) / 2) / (target_.layers - 1);
  return std::clamp<int64_t>(centre - window / 2, 0, source_.layers - window) * layer;
}

void ProjectorPass::mlp(const ProjectorData& data, Gemm& gemm, ProjectorActivations& a) const {
  a.hidden.resize(static_cast<size_t>(a.rows * hidden_));
  affine(gemm, a.z.data(), a.rows, rank_, values(data, "mlp.in"), values(data, "mlp.in_bias"), hidden_,
         a.hidden.data());
  silu(a.hidden, a.active, gemm.pool());
  gemm.multiply({a.active.data(), hidden_}, Strided{values(data, "mlp.out"), hidden_}.transposed(),
                {a.rows, out_, hidden_}, {a.y.data(), out_, true});
}

void ProjectorPass::fuse(const ProjectorData& data, Gemm& gemm, ProjectorActivations& a) const {
  const int64_t groups = 2 * int64_t{target_.layers};
  const int64_t rows = a.rows;
  const int heads = target_.kv_heads;
  a.input.resize(static_cast<size_t>(groups * rows * inputs_));
  a.hidden.resize(static_cast<size_t>(groups * rows * hidden_));
  a.feature.resize(static_cast<size_t>(groups * rows * block_));
  a.head.resize(static_cast<size_t>(groups * rows * heads));
  for (int64_t g = 0; g < groups; ++g) {
    float* input = &a.input[g * rows * inputs_];
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(&a.y[r * out_ + g * block_], block_, input + r * inputs_);
      std::copy_n(&a.x[r * in_ + window_begin(static_cast<int>(g / 2))], window_width(),
                  input + r * inputs_ + block_);
    }
    affine(gemm, input, rows, inputs_, values(data, "fuser.in") + g * hidden_ * inputs_,
           values(data, "fuser.in_bias") + g * hidden_, hidden_, &a.hidden[g * rows * hidden_]);
  }
  silu(a.hidden, a.active, gemm.pool());
  for (int64_t g = 0; g < groups; ++g) {
    const Strided active = {&a.active[g * rows * hidden_], hidden_};
    float* feature = &a.feature[g * rows * block_];
    float* head = &a.head[g * rows * heads];
    gemm.multiply(active, Strided{values(data, "fuser.out") + g * block_ * hidden_, hidden_}.transposed(),
                  {rows, block_, hidden_}, {feature, block_});
    gemm.multiply(active, Strided{values(data, "fuser.heads") + g * heads * hidden_, hidden_}.transposed(),
                  {rows, heads, hidden_}, {head, heads});
    for (int64_t i = 0; i < rows * heads; ++i) head[i] = 2.0F * sigmoid(head[i]);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < block_; ++i)
        a.y[r * out_ + g * block_ + i] +=
            a.gates[g] * head[r * heads + i / target_.head_dim] * feature[r * block_ + i];
  }
}

void ProjectorPass::forward(const ProjectorData& data, Gemm& gemm, const float* source,
                            const std::vector<char>& first, const std::vector<float>& gates,
                            ProjectorActivations& a, float* target) const {
  a.rows = static_cast<int>(first.size());
  a.first = first;
  a.x.resize(static_cast<size_t>(a.rows * in_));
  a.z.resize(static_cast<size_t>(a.rows * rank_));
  a.y.resize(static_cast<size_t>(a.rows * out_));
  const float* mean = values(data, "ridge.mean_in");
  const float* scale = values(data, "ridge.scale_in");
  gemm.pool().run(a.rows, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t i = 0; i < in_; ++i) a.x[r * in_ + i] = (source[r * in_ + i] - mean[i]) * scale[i];
  });
  gemm.multiply({a.x.data(), in_}, Strided{values(data, "ridge.down"), in_}.transposed(),
                {a.rows, rank_, in_}, {a.z.data(), rank_});
  gemm.multiply({a.z.data(), rank_}, Strided{values(data, "ridge.up"), rank_}.transposed(),
                {a.rows, out_, rank_}, {a.y.data(), out_});
  if (mlp_) mlp(data, gemm, a);
  if (fuser_) {
    a.gates = gates;
    if (gates.empty())
      for (const float logit : data.tensors.at("fuser.gate").data) a.gates.push_back(logit > 0 ? 1.0F : 0.0F);
    fuse(data, gemm, a);
  }
  mean = values(data, "ridge.mean_out");
  scale = values(data, "ridge.scale_out");
  const float* sink = data.has("ridge.first") ? values(data, "ridge.first") : nullptr;
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < out_; ++i)
      target[r * out_ + i] =
          sink != nullptr && first[r] != 0 ? sink[i] : mean[i] + scale[i] * a.y[r * out_ + i];
}

void ProjectorPass::mlp_back(const ProjectorData& data, Gemm& gemm, const std::vector<float>& dy,
                             std::vector<float>& dz, ProjectorActivations& a,
                             const Gradients& gradients) const {
  const Strided out = {dy.data(), out_};
  if (float* to = find(gradients, "mlp.out"))
    gemm.multiply(out.transposed(), {a.active.data(), hidden_}, {out_, hidden_, a.rows}, {to, hidden_, true});
  std::vector<float> dh(a.hidden.size());
  gemm.multiply(out, {values(data, "mlp.out"), hidden_}, {a.rows, hidden_, out_}, {dh.data(), hidden_});
  silu_back(a.hidden.data(), dh.data(), static_cast<int64_t>(dh.size()), gemm.pool());
  const Strided h = {dh.data(), hidden_};
  if (float* to = find(gradients, "mlp.in"))
    gemm.multiply(h.transposed(), {a.z.data(), rank_}, {hidden_, rank_, a.rows}, {to, rank_, true});
  if (float* to = find(gradients, "mlp.in_bias")) add_columns(dh.data(), a.rows, hidden_, to);
  gemm.multiply(h, {values(data, "mlp.in"), rank_}, {a.rows, rank_, hidden_}, {dz.data(), rank_, true});
}

// dy goes on through the input of the hidden layer too.
void ProjectorPass::fuse_back(const ProjectorData& data, Gemm& gemm, std::vector<float>& dy,
                              ProjectorActivations& a, const Gradients& gradients) const {
  const int64_t groups = 2 * int64_t{target_.layers};
  const int64_t rows = a.rows;
  const int heads = target_.kv_heads;
  std::vector<float> dfeature(static_cast<size_t>(rows * block_));
  std::vector<float> dhead(static_cast<size_t>(rows * heads));
  std::vector<float> dh(static_cast<size_t>(rows * hidden_));
  std::vector<float> dinput(static_cast<size_t>(rows * block_));
  for (int64_t g = 0; g < groups; ++g) {
    const float* feature = &a.feature[g * rows * block_];
    const float* head = &a.head[g * rows * heads];
    const Strided active = {&a.active[g * rows * hidden_], hidden_};
    double dgate = 0;
    std::fill(dhead.begin(), dhead.end(), 0.0F);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < block_; ++i) {
        const float d = dy[r * out_ + g * block_ + i];
        const int64_t h = r * heads + i / target_.head_dim;
        const float f = feature[r * block_ + i];
        dfeature[r * block_ + i] = d * a.gates[g] * head[h];
        dhead[h] += d * a.gates[g] * f;
        dgate += static_cast<double>(d) * head[h] * f;
      }
    // head = 2 s with s a sigmoid, so its slope is 2 s (1 - s).
    for (int64_t i = 0; i < rows * heads; ++i) dhead[i] *= head[i] * (1.0F - 0.5F * head[i]);
    if (float* to = find(gradients, "fuser.gate")) to[g] += static_cast<float>(dgate);
    const Strided df = {dfeature.data(), block_};
    const Strided dw = {dhead.data(), heads};
    if (float* to = find(gradients, "fuser.out"))
      gemm.multiply(df.transposed(), active, {block_, hidden_, rows},
                    {to + g * block_ * hidden_, hidden_, true});
    if (float* to = find(gradients, "fuser.heads"))
      gemm.multiply(dw.transposed(), active, {heads, hidden_, rows},
                    {to + g * heads * hidden_, hidden_, true});
    gemm.multiply(df, {values(data, "fuser.out") + g * block_ * hidden_, hidden_}, {rows, hidden_, block_},
                  {dh.data(), hidden_});
    gemm.multiply(dw, {values(data, "fuser.heads") + g * heads * hidden_, hidden_}, {rows, hidden_, heads},
                  {dh.data(), hidden_, true});
    silu_back(&a.hidden[g * rows * hidden_], dh.data(), rows * hidden_, gemm.pool());
    const Strided h = {dh.data(), hidden_};
    if (float* to = find(gradients, "fuser.in"))
      gemm.multiply(h.transposed(), {&a.input[g * rows * inputs_], inputs_}, {hidden_, inputs_, rows},
                    {to + g * hidden_ * inputs_, inputs_, true});
    if (float* to = find(gradients, "fuser.in_bias")) add_columns(dh.data(), rows, hidden_, to + g * hidden_);
    gemm.multiply(h, {values(data, "fuser.in") + g * hidden_ * inputs_, inputs_}, {rows, block_, hidden_},
                  {dinput.data(), block_});
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < block_; ++i) dy[r * out_ + g * block_ + i] += dinput[r * block_ + i];
  }
}

void ProjectorPass::backward(const ProjectorData& data, Gemm& gemm, const float* target_gradient,
                             ProjectorActivations& a, const Gradients& gradients) const {
  std::vector<float> dy(a.y.size());
  const float* scale = values(data, "ridge.scale_out");
  const bool sink = data.has("ridge.first");
  float* to_first = find(gradients, "ridge.first");
  float* to_mean = find(gradients, "ridge.mean_out");
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* from = target_gradient + r * out_;
    const bool is_sink = sink && a.first[r] != 0;
    for (int64_t i = 0; i < out_; ++i) dy[r * out_ + i] = is_sink ? 0.0F : from[i] * scale[i];
    float* to = is_sink ? to_first : to_mean;
    if (to != nullptr) add_columns(from, 1, out_, to);
  }
  std::vector<float> dz(a.z.size());
  if (fuser_) fuse_back(data, gemm, dy, a, gradients);
  if (mlp_) mlp_back(data, gemm, dy, dz, a, gradients);
  const Strided out = {dy.data(), out_};
  if (float* to = find(gradients, "ridge.up"))
    gemm.multiply(out.transposed(), {a.z.data(), rank_}, {out_, rank_, a.rows}, {to, rank_, true});
  float* to_down = find(gradients, "ridge.down");
  if (to_down == nullptr) return;
  gemm.multiply(out, {values(data, "ridge.up"), rank_}, {a.rows, rank_, out_}, {dz.data(), rank_, true});
  gemm.multiply(Strided{dz.data(), rank_}.transposed(), {a.x.data(), in_}, {rank_, in_, a.rows},
                {to_down, in_, true});
}

}  // namespace kvfold
