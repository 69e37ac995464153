// Products of training: f32, and with weights decoded on the fly, in the shapes of Qwen 0.5B's feed-forward
// part. items_per_second counts multiply-adds.
#include <benchmark/benchmark.h>

#include "engine/random.h"
#include "engine/train/gemm.h"
#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

constexpr int64_t kInputs = 896;
constexpr int64_t kOutputs = 4864;

std::vector<float> random_values(int64_t count) {
  Random random(1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) x = static_cast<float>(random.uniform() - 0.5);
  return values;
}

struct Shape {
  ThreadPool pool{ThreadPool::available()};
  Gemm gemm{pool, *select_cpu_kernels()};
  int64_t rows;
  std::vector<float> inputs, outputs;
  explicit Shape(benchmark::State& state)
      : rows(state.range(0)),
        inputs(random_values(rows * kInputs)),
        outputs(random_values(rows * kOutputs)) {}
  void count(benchmark::State& state) const {
    state.SetItemsProcessed(state.iterations() * rows * kInputs * kOutputs);
  }
};

void multiply(benchmark::State& state) {
  Shape s(state);
  const std::vector<float> weight = random_values(kInputs * kOutputs);
  for (auto _ : state)
    s.gemm.multiply({s.inputs.data(), kInputs}, Strided{weight.data(), kInputs}.transposed(),
                    {s.rows, kOutputs, kInputs}, {s.outputs.data(), kOutputs});
  s.count(state);
}

void weights(benchmark::State& state, WeightType type, bool back) {
  Shape s(state);
  const FormatInfo& format = format_info(type);
  const std::vector<float> values = random_values(kInputs * kOutputs);
  std::vector<std::byte> bytes(values.size() / format.block_elements * format.block_bytes);
  format.encode(values.data(), bytes.data(), values.size());
  const MatrixView w = {type, kOutputs, kInputs, bytes.data()};
  for (auto _ : state) {
    if (back)
      s.gemm.backward(s.outputs.data(), s.rows, w, {s.inputs.data(), kInputs});
    else
      s.gemm.forward(s.inputs.data(), s.rows, w, {s.outputs.data(), kOutputs});
  }
  s.count(state);
}

BENCHMARK(multiply)->Arg(31)->Arg(248)->UseRealTime();
BENCHMARK_CAPTURE(weights, forward_q5_0, WeightType::kQ5_0, false)->Arg(31)->Arg(248)->UseRealTime();
BENCHMARK_CAPTURE(weights, backward_q5_0, WeightType::kQ5_0, true)->Arg(31)->Arg(248)->UseRealTime();
BENCHMARK_CAPTURE(weights, backward_q8_0, WeightType::kQ8_0, true)->Arg(248)->UseRealTime();

}  // namespace
}  // namespace kvfold
