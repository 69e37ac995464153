#include "engine/train/trainer.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/printable.h"
#include "engine/random.h"

namespace kvfold {
namespace {

std::vector<float> gaussians(size_t count, double deviation, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(count);
  for (float& x : out) x = static_cast<float>(deviation * random.gaussian());
  return out;
}

ProjectorTensor zeros(std::vector<int64_t> shape) {
  int64_t size = 1;
  for (const int64_t n : shape) size *= n;
  return {std::move(shape), std::vector<float>(static_cast<size_t>(size)), false};
}

ProjectorTensor random_tensor(std::vector<int64_t> shape, uint64_t seed) {
  ProjectorTensor tensor = zeros(std::move(shape));
  tensor.data =
      gaussians(tensor.data.size(), 1.0 / std::sqrt(static_cast<double>(tensor.shape.back())), seed);
  return tensor;
}

}  // namespace

std::vector<int> batch_at(int64_t step, int batch, int count, uint64_t seed) {
  std::vector<int> out;
  std::vector<int> order(static_cast<size_t>(count));
  int64_t shuffled = -1;
  for (int64_t i = step * batch; i < (step + 1) * batch; ++i) {
    if (const int64_t epoch = i / count; epoch != shuffled) {
      std::iota(order.begin(), order.end(), 0);
      Random random(derive_seed(seed, static_cast<uint64_t>(epoch)));
      for (size_t left = order.size(); left > 1; --left)
        std::swap(order[left - 1], order[random.below(left)]);
      shuffled = epoch;
    }
    out.push_back(order[i % count]);
  }
  return out;
}

Result<std::unique_ptr<ProjectorTrainer>> ProjectorTrainer::create(ProjectorData start,
                                                                   const TrainerOptions& options,
                                                                   Gemm& gemm) {
  std::unique_ptr<ProjectorTrainer> trainer(new ProjectorTrainer(options, gemm));
  KVFOLD_RETURN_IF_ERROR(trainer->begin(std::move(start)));
  return trainer;
}

// New tensors of the residual: its last layer begins at zero, so that training begins at the ridge.
void ProjectorTrainer::add_residual() {
  const int64_t hidden = options_.hidden;
  const int64_t rank = data_.tensors.at("ridge.down").shape[0];
  const CacheShape& target = data_.target.shape;
  auto& t = data_.tensors;
  if (options_.kind == "mlp") {
    t["mlp.in"] = random_tensor({hidden, rank}, derive_seed(options_.seed, 1));
    t["mlp.in_bias"] = zeros({hidden});
    t["mlp.out"] = zeros({row_width(target), hidden});
  } else if (options_.kind == "fuser") {
    const int64_t groups = 2 * int64_t{target.layers};
    const int64_t block = int64_t{target.kv_heads} * target.head_dim;
    const CacheShape& source = data_.source.shape;
    const int64_t inputs = block + int64_t{options_.window} * 2 * source.kv_heads * source.head_dim;
    t["fuser.in"] = random_tensor({groups, hidden, inputs}, derive_seed(options_.seed, 2));
    t["fuser.in_bias"] = zeros({groups, hidden});
    t["fuser.heads"] = zeros({groups, target.kv_heads, hidden});
    t["fuser.out"] = zeros({groups, block, hidden});
    t["fuser.gate"] = zeros({groups});
    std::fill(t["fuser.gate"].data.begin(), t["fuser.gate"].data.end(), 1.0F);
  }
}

Status ProjectorTrainer::begin(ProjectorData start) {
  if (start.kind != "ridge" && start.kind != options_.kind)
    return Status::error(fmt::format("projector: found the kind {}, expected ridge or {} to train {}",
                                     printable(start.kind), options_.kind, options_.kind));
  KVFOLD_RETURN_IF_ERROR(check_projector(start));
  const bool fresh = start.kind != options_.kind;
  data_ = std::move(start);
  data_.kind = options_.kind;
  if (data_.has("ridge.down") && fresh) add_residual();
  KVFOLD_ASSIGN_OR_RETURN(pass_, ProjectorPass::create(data_));
  // Rates fall with the number of inputs, so that a step moves an output as far whatever feeds it (Yang et
  // al. 2022, arXiv:2203.03466).
  const auto train = [&](const char* name, double rate, bool decay) {
    if (data_.has(name)) parameters_.emplace_back(name, data_.tensors[name].data, rate, decay);
  };
  const auto rank = static_cast<double>(pass_.rank());
  const double rate = options_.rate;
  train("ridge.down", rate / row_width(data_.source.shape), false);
  train("ridge.up", rate / rank, false);
  const auto hidden = static_cast<double>(std::max<int64_t>(1, pass_.hidden()));
  train("mlp.in", rate / rank, true);
  train("mlp.in_bias", rate / rank, false);
  train("mlp.out", rate / hidden, true);
  const auto inputs = static_cast<double>(std::max<int64_t>(1, pass_.inputs()));
  train("fuser.in", rate / inputs, true);
  train("fuser.in_bias", rate / inputs, false);
  train("fuser.heads", rate / hidden, true);
  train("fuser.out", rate / hidden, true);
  train("fuser.gate", rate, false);
  return {};
}

int64_t ProjectorTrainer::parameters() const {
  int64_t count = 0;
  for (const Parameter& p : parameters_) count += static_cast<int64_t>(p.value->size());
  return count;
}

int64_t ProjectorTrainer::bytes() const {
  constexpr int kCopies = 5;  // value, gradient, two moments, the best
  return kCopies * parameters() * static_cast<int64_t>(sizeof(float));
}

void ProjectorTrainer::normalise(std::span<const TrainingText> texts) {
  const int64_t rank = pass_.rank();
  std::vector<double> sum(static_cast<size_t>(rank));
  std::vector<double> squares(static_cast<size_t>(rank));
  int64_t rows = 0;
  for (const TrainingText& text : texts) {
    rows_.resize(static_cast<size_t>(text.rows) * row_width(data_.target.shape));
    std::vector<char> first(static_cast<size_t>(text.rows));
    pass_.forward(data_, *gemm_, text.source, first, {}, activations_, rows_.data());
    // The first row is no row like others.
    for (int64_t r = 1; r < text.rows; ++r, ++rows)
      for (int64_t i = 0; i < rank; ++i) {
        const double z = activations_.z[r * rank + i];
        sum[i] += z;
        squares[i] += z * z;
      }
  }
  std::vector<float>& down = data_.tensors["ridge.down"].data;
  std::vector<float>& up = data_.tensors["ridge.up"].data;
  const int64_t in = row_width(data_.source.shape);
  for (int64_t i = 0; i < rank; ++i) {
    const double mean = sum[i] / static_cast<double>(rows);
    const double variance = squares[i] / static_cast<double>(rows) - mean * mean;
    if (!(variance > 0)) continue;
    const auto deviation = static_cast<float>(std::sqrt(variance));
    for (int64_t j = 0; j < in; ++j) down[i * in + j] /= deviation;
    for (size_t o = 0; o < up.size() / rank; ++o) up[o * rank + i] *= deviation;
  }
}

// Falls from 1 to 0.1 over the steps.
double ProjectorTrainer::temperature() const {
  return std::pow(0.1, static_cast<double>(state_.step) / static_cast<double>(options_.steps));
}

std::vector<float> ProjectorTrainer::draw_gates() const {
  std::vector<float> gates;
  if (options_.kind != "fuser") return gates;
  Random random(derive_seed(options_.seed ^ 0x67617465, static_cast<uint64_t>(state_.step)));
  for (const float logit : data_.tensors.at("fuser.gate").data) {
    const double u = std::clamp(random.uniform(), 1e-9, 1 - 1e-9);
    const double at = (logit + std::log(u) - std::log(1 - u)) / temperature();
    gates.push_back(static_cast<float>(1.0 / (1.0 + std::exp(-at))));
  }
  return gates;
}

// Projects the contexts, reads the continuations behind them, and adds to the gradients.
Result<double> ProjectorTrainer::run(std::span<const TrainingText> batch, const std::vector<float>& gates,
                                     bool gradients, Receiver& receiver) {
  const auto in = static_cast<size_t>(row_width(data_.source.shape));
  const auto out = static_cast<size_t>(row_width(data_.target.shape));
  source_.clear();
  std::vector<char> first;
  for (const TrainingText& text : batch) {
    source_.insert(source_.end(), text.source, text.source + static_cast<size_t>(text.rows) * in);
    for (int r = 0; r < text.rows; ++r) first.push_back(static_cast<char>(r == 0));
  }
  rows_.resize(first.size() * out);
  row_gradients_.resize(gradients ? rows_.size() : 0);
  pass_.forward(data_, *gemm_, source_.data(), first, gates, activations_, rows_.data());
  std::vector<Reading> readings;
  size_t row = 0;
  for (const TrainingText& text : batch) {
    Reading reading{rows_.data() + row * out, text.rows, text.continuation,
                    gradients ? row_gradients_.data() + row * out : nullptr};
    reading.teacher = text.teacher;
    readings.push_back(reading);
    row += static_cast<size_t>(text.rows);
  }
  KVFOLD_ASSIGN_OR_RETURN(const double nll, receiver.read(readings, options_.teacher_share));
  if (!std::isfinite(nll))
    return Status::error(
        fmt::format("training has diverged: behind step {} the loss is {}", state_.step, nll));
  nll_.clear();
  for (const Reading& reading : readings) nll_.push_back(reading.nll);
  if (!gradients) return nll;
  ProjectorPass::Gradients into;
  for (Parameter& p : parameters_) into[p.name] = p.gradient.data();
  pass_.backward(data_, *gemm_, row_gradients_.data(), activations_, into);
  return nll;
}

Result<double> ProjectorTrainer::step(std::span<const TrainingText> batch, Receiver& receiver) {
  const std::vector<float> gates = draw_gates();
  KVFOLD_ASSIGN_OR_RETURN(const double nll, run(batch, gates, true, receiver));
  for (Parameter& p : parameters_)
    if (p.name == "fuser.gate")  // on from the drawn gate to its logit
      for (size_t i = 0; i < gates.size(); ++i)
        p.gradient[i] *= static_cast<float>(gates[i] * (1.0F - gates[i]) / temperature());
  norm_ = clip_gradients(parameters_, options_.clip, gemm_->pool());
  if (!std::isfinite(norm_))
    return Status::error(
        fmt::format("training has diverged: behind step {} the gradient's norm is {}", state_.step, norm_));
  ++state_.step;
  adamw_step(parameters_, options_.adam, state_.step, scheduled_rate(state_.step, options_.steps),
             gemm_->pool());
  return nll;
}

Result<double> ProjectorTrainer::evaluate(std::span<const TrainingText> texts, int batch,
                                          Receiver& receiver) {
  double nll = 0;
  int64_t scored = 0;
  for (size_t begin = 0; begin < texts.size(); begin += static_cast<size_t>(batch)) {
    const auto part = texts.subspan(begin, std::min(texts.size() - begin, static_cast<size_t>(batch)));
    KVFOLD_RETURN_IF_ERROR(run(part, {}, false, receiver).status());
    for (const double n : nll_) nll += n;
    for (const TrainingText& text : part) scored += static_cast<int64_t>(text.continuation.size()) - 1;
  }
  return nll / static_cast<double>(scored);
}

void ProjectorTrainer::note(double nll) {
  state_.curve.push_back(static_cast<double>(state_.step));
  state_.curve.push_back(nll);
  if (!best_.empty() && !(nll < state_.best)) {
    ++state_.stale;
    return;
  }
  best_.clear();
  for (const Parameter& p : parameters_) best_.push_back(*p.value);
  state_.best = nll;
  state_.best_step = state_.step;
  state_.stale = 0;
}

ProjectorData ProjectorTrainer::best() const {
  ProjectorData out = data_;
  for (size_t i = 0; i < best_.size(); ++i) out.tensors[parameters_[i].name].data = best_[i];
  for (const Parameter& p : parameters_)
    if (p.name != "fuser.gate") out.tensors[p.name].half = true;
  return out;
}

}  // namespace kvfold
