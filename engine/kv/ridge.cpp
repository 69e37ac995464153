#include "engine/kv/ridge.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "engine/kv/cache_metadata.h"
#include "engine/printable.h"
#include "engine/safetensors.h"

namespace kvfold {
namespace {

// out[columns] += sum over rows of m, scaled by weights [rows] where there are some.
void add_rows(const Matrix& m, int rows, const float* weights, std::vector<double>& out) {
  for (int r = 0; r < rows; ++r)
    for (int64_t i = 0; i < m.columns; ++i)
      out[static_cast<size_t>(i)] += static_cast<double>(weights[r]) * m.row(r)[i];
}

// Mean and 1 / deviation of the first rows of m, which are then shifted and scaled by them.
void fit_scale(const Matrix& m, int rows, std::vector<float>& shift, std::vector<float>& scale) {
  for (int64_t i = 0; i < m.columns; ++i) {
    double sum = 0;
    double squares = 0;
    for (int r = 0; r < rows; ++r) sum += m.row(r)[i];
    const double mean = sum / rows;
    for (int r = 0; r < rows; ++r) squares += (m.row(r)[i] - mean) * (m.row(r)[i] - mean);
    shift.push_back(static_cast<float>(mean));
    // A dimension that never varied keeps its size: it may yet.
    const double deviation = std::sqrt(squares / rows);
    scale.push_back(deviation > 1e-6 ? static_cast<float>(1 / deviation) : 1.0F);
  }
}

void rescale(Matrix& m, int rows, const std::vector<float>& shift, const std::vector<float>& scale) {
  for (int r = 0; r < rows; ++r)
    for (int64_t i = 0; i < m.columns; ++i) m.row(r)[i] = (m.row(r)[i] - shift[i]) * scale[i];
}

}  // namespace

RidgeSums::RidgeSums(const CacheShape& source, const CacheShape& target)
    : source_(source), target_(target), waiting_weights_(kBatch) {
  const int64_t in = row_width(source);
  const int64_t out = row_width(target);
  in_in_ = Matrix(in, in);
  in_out_ = Matrix(in, out);
  waiting_in_ = Matrix(kBatch, in);
  waiting_out_ = Matrix(kBatch, out);
  first_.resize(static_cast<size_t>(out));
  sum_in_.resize(static_cast<size_t>(in));
  sum_out_.resize(static_cast<size_t>(out));
  out_out_.resize(static_cast<size_t>(out));
}

int64_t RidgeSums::bytes(const CacheShape& source, const CacheShape& target) {
  const int64_t in = row_width(source);
  const int64_t out = row_width(target);
  return static_cast<int64_t>(sizeof(float)) * (in * in + in * out + kBatch * (in + out));
}

void RidgeSums::add(const float* source, const float* target, int rows, const float* weights,
                    ThreadPool& threads) {
  const int64_t in = waiting_in_.columns;
  const int64_t out = waiting_out_.columns;
  for (int64_t i = 0; i < out; ++i) first_[static_cast<size_t>(i)] += target[i];
  ++texts_;
  for (int r = 1; r < rows; ++r) {
    std::copy_n(source + r * in, in, waiting_in_.row(waiting_));
    std::copy_n(target + r * out, out, waiting_out_.row(waiting_));
    waiting_weights_[static_cast<size_t>(waiting_)] = weights == nullptr ? 1.0F : weights[r];
    if (++waiting_ == kBatch) flush(threads);
  }
}

void RidgeSums::begin() {
  fit_scale(waiting_in_, waiting_, shift_in_, scale_in_);
  fit_scale(waiting_out_, waiting_, shift_out_, scale_out_);
}

void RidgeSums::flush(ThreadPool& threads) {
  if (waiting_ == 0) return;
  if (rows_ == 0) begin();
  rescale(waiting_in_, waiting_, shift_in_, scale_in_);
  rescale(waiting_out_, waiting_, shift_out_, scale_out_);
  add_rows(waiting_in_, waiting_, waiting_weights_.data(), sum_in_);
  add_rows(waiting_out_, waiting_, waiting_weights_.data(), sum_out_);
  for (int r = 0; r < waiting_; ++r) {
    const float weight = waiting_weights_[static_cast<size_t>(r)];
    weight_ += weight;
    for (int64_t i = 0; i < waiting_out_.columns; ++i) {
      const double y = waiting_out_.row(r)[i];
      out_out_[static_cast<size_t>(i)] += weight * y * y;
    }
    const float root = std::sqrt(weight);
    for (int64_t i = 0; i < waiting_in_.columns; ++i) waiting_in_.row(r)[i] *= root;
    for (int64_t i = 0; i < waiting_out_.columns; ++i) waiting_out_.row(r)[i] *= root;
  }
  const int64_t in = waiting_in_.columns;
  const int64_t out = waiting_out_.columns;
  const MatrixRef x(waiting_in_.data.data(), waiting_, in, in);
  const MatrixRef y(waiting_out_.data.data(), waiting_, out, out);
  multiply(x.transposed(), x, Sum::kAdd, {in_in_.data.data(), in}, threads, true);
  multiply(x.transposed(), y, Sum::kAdd, {in_out_.data.data(), out}, threads);
  rows_ += waiting_;
  waiting_ = 0;
}

// ---- files ----

Status RidgeSums::save(const std::string& path, const std::string& identity) const {
  KVFOLD_CHECK(waiting_ == 0);
  std::vector<SafetensorsEntry> entries;
  const auto vector_entry = [&](const char* name, const char* dtype, const auto& values) {
    entries.push_back({name, dtype, {static_cast<int64_t>(values.size())}, [&values] {
                         return std::as_bytes(std::span(values));
                       }});
  };
  vector_entry("first", "F64", first_);
  vector_entry("shift_in", "F32", shift_in_);
  vector_entry("scale_in", "F32", scale_in_);
  vector_entry("shift_out", "F32", shift_out_);
  vector_entry("scale_out", "F32", scale_out_);
  vector_entry("sum_in", "F64", sum_in_);
  vector_entry("sum_out", "F64", sum_out_);
  vector_entry("out_out", "F64", out_out_);
  vector_entry("in_in", "F32", in_in_.data);
  vector_entry("in_out", "F32", in_out_.data);
  const std::map<std::string, std::string> metadata = {{"kvfold_ridge_sums", "1"},
                                                       {"identity", identity},
                                                       {"rows", std::to_string(rows_)},
                                                       {"texts", std::to_string(texts_)},
                                                       {"weight", fmt::format("{:a}", weight_)}};
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(write_safetensors(file, metadata, entries));
  return file.commit();
}

Result<RidgeSums> RidgeSums::load(const std::string& path, const CacheShape& source, const CacheShape& target,
                                  std::string* identity) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> map, MappedFile::open(path));
  KVFOLD_ASSIGN_OR_RETURN(const SafetensorsFile file, parse_safetensors(map->bytes(), path));
  RidgeSums out(source, target);
  const MetadataReader meta(path, file.metadata);
  if (!meta.has("kvfold_ridge_sums") || file.metadata.at("kvfold_ridge_sums") != "1")
    return meta.fail("metadata 'kvfold_ridge_sums': expected 1: not sums of a ridge");
  KVFOLD_ASSIGN_OR_RETURN(*identity, meta.text("identity"));
  KVFOLD_ASSIGN_OR_RETURN(out.rows_, meta.integer("rows", 0, INT32_MAX));
  KVFOLD_ASSIGN_OR_RETURN(out.texts_, meta.integer("texts", 0, INT32_MAX));
  KVFOLD_ASSIGN_OR_RETURN(const std::string weight, meta.text("weight"));
  char* end = nullptr;
  out.weight_ = std::strtod(weight.c_str(), &end);
  if (weight.empty() || *end != '\0' || !std::isfinite(out.weight_) || out.weight_ < 0)
    return meta.fail(fmt::format("metadata 'weight': found '{}', expected a number", printable(weight)));
  const auto in = static_cast<size_t>(row_width(source));
  const auto width = static_cast<size_t>(row_width(target));
  for (std::vector<float>* v : {&out.shift_in_, &out.scale_in_}) v->resize(in);
  for (std::vector<float>* v : {&out.shift_out_, &out.scale_out_}) v->resize(width);
  Status status;
  const auto fill = [&](const char* name, auto& values) {
    const auto at = file.tensors.find(name);
    const size_t wanted = values.size() * sizeof(values[0]);
    if (!status.ok()) return;
    if (at == file.tensors.end() || at->second.bytes.size() != wanted)
      status = Status::error(
          fmt::format("{}: tensor '{}': found {} bytes, expected {}: of another pair of models", path, name,
                      at == file.tensors.end() ? 0 : at->second.bytes.size(), wanted));
    else
      std::memcpy(values.data(), at->second.bytes.data(), wanted);
    const auto bad = std::find_if_not(values.begin(), values.end(), [](auto x) { return std::isfinite(x); });
    if (status.ok() && bad != values.end())
      status = meta.fail(
          fmt::format("tensor '{}': element {} is {}, expected a number", name, bad - values.begin(), *bad));
  };
  fill("first", out.first_);
  fill("shift_in", out.shift_in_);
  fill("scale_in", out.scale_in_);
  fill("shift_out", out.shift_out_);
  fill("scale_out", out.scale_out_);
  fill("sum_in", out.sum_in_);
  fill("sum_out", out.sum_out_);
  fill("out_out", out.out_out_);
  fill("in_in", out.in_in_.data);
  fill("in_out", out.in_out_.data);
  KVFOLD_RETURN_IF_ERROR(status);
  return out;
}

// ---- solving ----

Result<RidgeSolution> RidgeSolution::solve(const RidgeSums& sums, double lambda, ThreadPool& threads) {
  KVFOLD_CHECK(sums.waiting_ == 0);
  if (sums.rows_ == 0) return Status::error("ridge: no rows to fit to");
  RidgeSolution out(sums);
  out.lambda_ = lambda;
  const double n = sums.weight_;
  for (const double sum : sums.sum_in_) out.mean_in_.push_back(sum / n);
  for (const double sum : sums.sum_out_) out.mean_out_.push_back(sum / n);
  Matrix g = sums.in_in_;
  for (int64_t i = 0; i < g.rows; ++i) {
    for (int64_t j = i; j < g.columns; ++j)
      g.row(i)[j] -= static_cast<float>(n * out.mean_in_[i] * out.mean_in_[j]);
    g.row(i)[i] += static_cast<float>(lambda * n);
  }
  out.in_out_ = sums.in_out_;
  for (int64_t i = 0; i < out.in_out_.rows; ++i)
    for (int64_t j = 0; j < out.in_out_.columns; ++j)
      out.in_out_.row(i)[j] -= static_cast<float>(n * out.mean_in_[i] * out.mean_out_[j]);
  KVFOLD_RETURN_IF_ERROR(cholesky(g, threads).with_prefix(fmt::format("ridge, lambda {}: ", lambda)));
  out.weight_ = out.in_out_;
  cholesky_solve(g, out.weight_, threads);
  return out;
}

// Everything but the matrices.
ProjectorData RidgeSolution::frame() const {
  ProjectorData out;
  out.kind = "ridge";
  out.source.shape = sums_->source_;
  out.target.shape = sums_->target_;
  const auto vector = [&](const char* name, std::vector<float> values) {
    const auto size = static_cast<int64_t>(values.size());
    out.tensors[name] = {{size}, std::move(values)};
  };
  // scaled = (x - shift) * scale, and that less its mean.
  const auto means = [](const std::vector<float>& shift, const std::vector<float>& scale,
                        const std::vector<double>& mean) {
    std::vector<float> values;
    for (size_t i = 0; i < shift.size(); ++i)
      values.push_back(static_cast<float>(shift[i] + mean[i] / scale[i]));
    return values;
  };
  std::vector<float> scale_out;
  for (const float scale : sums_->scale_out_) scale_out.push_back(1.0F / scale);
  std::vector<float> first;
  for (const double sum : sums_->first_)
    first.push_back(static_cast<float>(sum / static_cast<double>(sums_->texts_)));
  vector("ridge.mean_in", means(sums_->shift_in_, sums_->scale_in_, mean_in_));
  vector("ridge.scale_in", sums_->scale_in_);
  vector("ridge.mean_out", means(sums_->shift_out_, sums_->scale_out_, mean_out_));
  vector("ridge.scale_out", std::move(scale_out));
  vector("ridge.first", std::move(first));
  out.notes = {{"lambda", fmt::format("{:g}", lambda_)},
               {"rows", std::to_string(sums_->rows_)},
               {"texts", std::to_string(sums_->texts_)}};
  return out;
}

ProjectorData RidgeSolution::whole() const {
  ProjectorData out = frame();
  ProjectorTensor weight{{weight_.columns, weight_.rows}, std::vector<float>(weight_.data.size())};
  for (int64_t i = 0; i < weight_.rows; ++i)
    for (int64_t j = 0; j < weight_.columns; ++j) weight.data[j * weight_.rows + i] = weight_.row(i)[j];
  out.tensors["ridge.weight"] = std::move(weight);
  return out;
}

std::vector<float> RidgeSolution::metric_weights(RidgeMetric metric) const {
  const CacheShape& shape = sums_->target_;
  const int block = shape.kv_heads * shape.head_dim;
  std::vector<float> out(static_cast<size_t>(row_width(shape)), 1.0F);
  if (metric == RidgeMetric::kDimensions) return out;
  for (size_t b = 0; b < out.size(); b += static_cast<size_t>(block)) {
    double squares = 0;
    for (int i = 0; i < block; ++i) squares += std::pow(1.0 / sums_->scale_out_[b + i], 2);
    for (int i = 0; i < block; ++i)
      out[b + i] = static_cast<float>(1.0 / sums_->scale_out_[b + i] / std::sqrt(squares / block));
  }
  return out;
}

Result<ProjectorData> RidgeSolution::reduced(int rank, RidgeMetric metric, ThreadPool& threads) const {
  const int64_t in = weight_.rows;
  const int64_t width = weight_.columns;
  KVFOLD_CHECK(rank >= 1 && rank <= in && rank <= width);
  const std::vector<float> d = metric_weights(metric);
  // The space of the largest eigenvalues of w^T (X^T X + lambda n I) w = (X^T Y)^T w, weighted on both sides.
  Matrix s(width, width);
  multiply(MatrixRef(in_out_).transposed(), weight_, Sum::kSet, {s.data.data(), width}, threads, true);
  const auto n = static_cast<float>(sums_->weight_);
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = i; j < width; ++j) s.row(j)[i] = s.row(i)[j] = s.row(i)[j] / n * d[i] * d[j];
  constexpr int kIterations = 12;
  KVFOLD_ASSIGN_OR_RETURN(const Matrix q, leading_space(s, rank, kIterations, 1, threads));
  Matrix weighted = q;
  ProjectorTensor up{{width, rank}, q.data, true};
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < rank; ++j) {
      weighted.row(i)[j] *= d[i];
      up.data[i * rank + j] /= d[i];
    }
  ProjectorTensor down{{rank, in}, std::vector<float>(static_cast<size_t>(rank) * in), true};
  multiply(MatrixRef(weighted).transposed(), MatrixRef(weight_).transposed(), Sum::kSet,
           {down.data.data(), in}, threads);
  ProjectorData out = frame();
  out.notes["rank"] = std::to_string(rank);
  out.tensors["ridge.down"] = std::move(down);
  out.tensors["ridge.up"] = std::move(up);
  return out;
}

std::vector<double> RidgeSolution::explained() const {
  const CacheShape& shape = sums_->target_;
  const double n = sums_->weight_;
  std::vector<double> out;
  for (const Part part : {Part::kKey, Part::kValue})
    for (int layer = 0; layer < shape.layers; ++layer) {
      double residual = 0;
      double total = 0;
      const int begin = row_offset(shape, part, layer);
      for (int j = begin; j < begin + shape.kv_heads * shape.head_dim; ++j) {
        // |y - x w|^2 = y.y - w.(x.y) - lambda n |w|^2, as (G + lambda n I) w = x.y.
        double fitted = 0;
        double norm = 0;
        for (int64_t i = 0; i < weight_.rows; ++i) {
          const double w = weight_.row(i)[j];
          fitted += w * in_out_.row(i)[j];
          norm += w * w;
        }
        const double variance = sums_->out_out_[j] - n * mean_out_[j] * mean_out_[j];
        total += variance;
        residual += variance - fitted - lambda_ * n * norm;
      }
      out.push_back(1 - residual / total);
    }
  return out;
}

}  // namespace kvfold
