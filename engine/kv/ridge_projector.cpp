#include "engine/kv/ridge_projector.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "engine/printable.h"

namespace kvfold {

namespace {

MatrixRef matrix(const ProjectorTensor& t) { return {t.data.data(), t.shape[0], t.shape[1], t.shape[1]}; }

// What would be silently left out.
Status check_ridge_names(const ProjectorData& data) {
  constexpr std::array<std::string_view, 8> kNames = {"ridge.mean_in",   "ridge.scale_in", "ridge.mean_out",
                                                      "ridge.scale_out", "ridge.first",    "ridge.weight",
                                                      "ridge.down",      "ridge.up"};
  for (const auto& entry : data.tensors) {
    const std::string& name = entry.first;
    if (name.starts_with("ridge.") && std::find(kNames.begin(), kNames.end(), name) == kNames.end())
      return Status::error(
          fmt::format("projector: tensor '{}' is none of those of a ridge", printable(name)));
  }
  for (const char* half : {"ridge.down", "ridge.up"})
    if (data.has("ridge.weight") && data.has(half))
      return Status::error(
          fmt::format("projector: tensor '{}' stands beside 'ridge.weight', which takes its place", half));
  return {};
}

}  // namespace

Status check_ridge_tensors(const ProjectorData& data) {
  KVFOLD_RETURN_IF_ERROR(check_ridge_names(data));
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

namespace {

// a a^T
Matrix gram(const MatrixRef& a, ThreadPool& threads) {
  Matrix out(a.rows, a.rows);
  multiply(a, a.transposed(), Sum::kSet, {out.data.data(), a.rows}, threads);
  return out;
}

double squares(const MatrixRef& a) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.columns; ++j) sum += std::pow(a.data[i * a.row_step + j * a.column_step], 2);
  return sum;
}

}  // namespace

Matrix layer_flow(const ProjectorData& data, ThreadPool& threads) {
  const CacheShape& from = data.source.shape;
  const CacheShape& to = data.target.shape;
  const int64_t in = row_width(from);
  const int64_t columns = in / from.layers;
  const int64_t rows = row_width(to) / to.layers;
  Matrix out(to.layers, from.layers);
  if (const auto weight = data.tensors.find("ridge.weight"); weight != data.tensors.end()) {
    for (int a = 0; a < to.layers; ++a)
      for (int b = 0; b < from.layers; ++b) {
        const float* block = weight->second.data.data() + a * rows * in + b * columns;
        out.row(a)[b] = static_cast<float>(std::sqrt(squares({block, rows, columns, in})));
      }
    return out;
  }
  // |U D|^2 = <U^T U, D D^T>, which never has a block of weights in full.
  const ProjectorTensor& down = data.tensors.at("ridge.down");
  const ProjectorTensor& up = data.tensors.at("ridge.up");
  const int64_t rank = down.shape[0];
  std::vector<Matrix> sources;
  for (int b = 0; b < from.layers; ++b)
    sources.push_back(gram({down.data.data() + b * columns, rank, columns, in}, threads));
  for (int a = 0; a < to.layers; ++a) {
    const Matrix target =
        gram(MatrixRef(up.data.data() + a * rows * rank, rows, rank, rank).transposed(), threads);
    for (int b = 0; b < from.layers; ++b) {
      const double square =
          std::inner_product(target.data.begin(), target.data.end(), sources[b].data.begin(), 0.0);
      out.row(a)[b] = static_cast<float>(std::sqrt(std::max(square, 0.0)));
    }
  }
  return out;
}

}  // namespace kvfold
