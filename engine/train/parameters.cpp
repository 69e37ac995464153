#include "engine/train/parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvfold {
namespace {

// Values that are summed in one go: fixed, so that threads do not show in the sum.
constexpr int64_t kPiece = 1 << 16;

double sum_of_squares(const std::vector<float>& values, ThreadPool& pool) {
  const auto size = static_cast<int64_t>(values.size());
  std::vector<double> sums(static_cast<size_t>((size + kPiece - 1) / kPiece));
  pool.run(static_cast<int64_t>(sums.size()), [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = p * kPiece; i < std::min(size, (p + 1) * kPiece); ++i)
        sums[p] += static_cast<double>(values[i]) * values[i];
  });
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

}  // namespace

double clip_gradients(std::vector<Parameter>& parameters, double most, ThreadPool& pool) {
  double square = 0;
  for (const Parameter& p : parameters) square += sum_of_squares(p.gradient, pool);
  const double norm = std::sqrt(square);
  if (norm <= most) return norm;
  const auto scale = static_cast<float>(most / norm);
  for (Parameter& p : parameters)
    for (float& g : p.gradient) g *= scale;
  return norm;
}

void adamw_step(std::vector<Parameter>& parameters, const AdamW& options, int64_t step, double rate,
                ThreadPool& pool) {
  const auto first = static_cast<float>(options.first);
  const auto second = static_cast<float>(options.second);
  const auto epsilon = static_cast<float>(options.epsilon);
  // Running means begin at zero, which these make good.
  const double correct_mean = 1.0 / (1.0 - std::pow(options.first, static_cast<double>(step)));
  const double correct_square = 1.0 / (1.0 - std::pow(options.second, static_cast<double>(step)));
  const auto root = static_cast<float>(std::sqrt(correct_square));
  for (Parameter& p : parameters) {
    const auto keep = static_cast<float>(1.0 - rate * p.rate * (p.decay ? options.decay : 0.0));
    const auto stride = static_cast<float>(rate * p.rate * correct_mean);
    float* value = p.value->data();
    pool.run(static_cast<int64_t>(p.value->size()), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const float g = p.gradient[i];
        p.mean[i] = first * p.mean[i] + (1.0F - first) * g;
        p.square[i] = second * p.square[i] + (1.0F - second) * (g * g);
        value[i] = keep * value[i] - stride * p.mean[i] / (root * std::sqrt(p.square[i]) + epsilon);
        p.gradient[i] = 0;
      }
    });
  }
}

double scheduled_rate(int64_t step, int64_t steps) {
  const double warm = std::max(1.0, std::ceil(static_cast<double>(steps) / 10));
  const auto at = static_cast<double>(step);
  if (at <= warm) return at / warm;
  const double share = (at - warm) / std::max(1.0, static_cast<double>(steps) - warm);
  return 0.1 + 0.9 * 0.5 * (1.0 + std::cos(std::numbers::pi * share));
}

}  // namespace kvfold
