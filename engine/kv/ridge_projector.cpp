#include "engine/kv/ridge_projector.h"

#include <algorithm>

namespace kvfold {

namespace {

MatrixRef matrix(const ProjectorTensor& t) { return {t.data.data(), t.shape[0], t.shape[1], t.shape[1]}; }

}  // namespace

Status check_ridge_tensors(const ProjectorData& data) {
  const int64_t in = row_width(data.source.shape);
  const int64_t out = row_width(data.target.shape);
  for (const char* name : {"ridge.mean_in", "ridge.scale_in"})
    KVFOLD_RETURN_IF_ERROR(data.tensor(name, {in}).status());
  for (const char* name : {"ridge.mean_out", "ridge.scale_out"})
    KVFOLD_RETURN_IF_ERROR(data.tensor(name, {out}).status());
  if (data.has("ridge.first")) KVFOLD_RETURN_IF_ERROR(data.tensor("ridge.first", {out}).status());
  if (data.has("ridge.weight")) return data.tensor("ridge.weight", {out, in}).status();
  const auto down = data.tensors.find("ridge.down");
  const int64_t rank = down == data.tensors.end() || down->second.shape.empty() ? 0 : down->second.shape[0];
  KVFOLD_RETURN_IF_ERROR(data.tensor("ridge.down", {rank, in}).status());
  if (rank == 0)
    return Status::error("projector: tensor 'ridge.down': found no components, expected one or more");
  return data.tensor("ridge.up", {out, rank}).status();
}

Result<std::unique_ptr<Projector>> RidgeProjector::make(ProjectorData data) {
  KVFOLD_RETURN_IF_ERROR(check_ridge_tensors(data));
  return std::unique_ptr<Projector>(new RidgeProjector(std::move(data)));
}

RidgeProjector::RidgeProjector(ProjectorData data) : Projector(std::move(data)) {}

void RidgeProjector::apply(const float* source, int rows, bool first, float* target,
                           ThreadPool& threads) const {
  const auto& t = data().tensors;
  const auto values = [&](const char* name) { return t.at(name).data.data(); };
  const int64_t in = source_width();
  const int64_t out = target_width();
  Matrix x(rows, in);
  const float* mean = values("ridge.mean_in");
  const float* scale = values("ridge.scale_in");
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < in; ++i) x.row(r)[i] = (source[r * in + i] - mean[i]) * scale[i];
  if (const auto weight = t.find("ridge.weight"); weight != t.end()) {
    multiply(x, matrix(weight->second).transposed(), Sum::kSet, {target, out}, threads);
  } else {
    const ProjectorTensor& down = t.at("ridge.down");
    Matrix z(rows, down.shape[0]);
    multiply(x, matrix(down).transposed(), Sum::kSet, {z.data.data(), z.columns}, threads);
    multiply(z, matrix(t.at("ridge.up")).transposed(), Sum::kSet, {target, out}, threads);
  }
  mean = values("ridge.mean_out");
  scale = values("ridge.scale_out");
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < out; ++i) target[r * out + i] = mean[i] + scale[i] * target[r * out + i];
  if (const auto at = t.find("ridge.first"); at != t.end() && first && rows > 0)
    std::copy(at->second.data.begin(), at->second.data.end(), target);
}

}  // namespace kvfold
