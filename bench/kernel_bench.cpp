// The CPU kernels one by one, on one thread, at the shapes of SmolLM2-135M (576 x 1536, heads of 64, groups
// of 3) and of Qwen2.5-0.5B (896 x 4864, groups of 7). Weights and pages come from memory, as in a forward
// pass: each benchmark walks through more of them than the caches hold.
//
// `of_read` is bytes a second as a share of what a read loop over 400 MB reaches in the same run. KVFOLD_CPU
// names the kernels.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/random.h"
#include "engine/read_bandwidth.h"
#include "engine/rope.h"
#include "engine/weight_memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

constexpr size_t kFarBytes = size_t{128} << 20;  // more than the last cache

const CpuKernels& kernels() {
  static const CpuKernels* table = select_cpu_kernels(std::getenv("KVFOLD_CPU"));
  if (table == nullptr) std::abort();
  return *table;
}

double machine_reads() {
  static const double speed = read_bandwidth(1).value();
  return speed;
}

std::vector<float> gaussians(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(count);
  for (float& x : out) x = static_cast<float>(random.gaussian());
  return out;
}

void report_bytes(benchmark::State& state, double bytes) {
  const double all = bytes * static_cast<double>(state.iterations());
  state.counters["bytes/s"] = {all, benchmark::Counter::kIsRate};
  state.counters["of_read"] = {all / machine_reads(), benchmark::Counter::kIsRate};
}

// ---- matrix products ----

struct Shape {
  int outputs, columns;
};
constexpr Shape kShapes[] = {{1536, 576 / 256 * 256}, {576, 1536}, {4864, 896 / 256 * 256}, {896, 4864}};

// As many copies of a matrix as are needed to come from memory, packed where the kernels pack.
class FarMatrices {
 public:
  FarMatrices(WeightType type, int outputs, int columns) {
    const FormatInfo& format = format_info(type);
    const auto values = gaussians(static_cast<size_t>(outputs) * columns, 1);
    plain_.resize(values.size() / format.block_elements * format.block_bytes);
    format.encode(values.data(), plain_.data(), values.size());
    const MatrixView view{type, outputs, columns, plain_.data()};
    units_ = (outputs + kernels().row_unit - 1) / kernels().row_unit;
    bytes_ = kernels().pack == nullptr ? plain_.size() : kernels().packed_bytes(view);
    while (views_.size() * bytes_ < kFarBytes) {
      memory_.push_back(weights_.allocate(bytes_));
      if (kernels().pack == nullptr) {
        std::copy(plain_.begin(), plain_.end(), memory_.back().get());
      } else {
        kernels().pack(view, 0, units_, memory_.back().get());
      }
      views_.push_back({type, outputs, columns, memory_.back().get()});
    }
  }
  const MatrixView& next() { return views_[at_++ % views_.size()]; }
  int64_t units() const { return units_; }
  size_t bytes() const { return bytes_; }

 private:
  WeightMemory weights_;
  std::vector<std::shared_ptr<std::byte>> memory_;
  std::vector<std::byte> plain_;
  std::vector<MatrixView> views_;
  int64_t units_;
  size_t bytes_;
  size_t at_ = 0;
};

void matmul(benchmark::State& state, WeightType type, Shape shape, int rows) {
  FarMatrices weights(type, shape.outputs, shape.columns);
  const int groups = (shape.columns + kGroup - 1) / kGroup;
  std::vector<ActivationGroup> panels(static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows) * groups);
  const std::vector<float> x = gaussians(static_cast<size_t>(rows) * shape.columns, 2);
  kernels().quantize(x.data(), rows, shape.columns, panels.data());
  std::vector<float> y(static_cast<size_t>(rows) * shape.outputs);
  for (auto _ : state)
    kernels().matmul_q8(weights.next(), 0, weights.units(), {panels.data(), groups}, rows, y.data(),
                        shape.outputs);
  report_bytes(state, static_cast<double>(weights.bytes()));
  state.counters["MAC/s"] = {static_cast<double>(state.iterations()) * rows * shape.outputs * shape.columns,
                             benchmark::Counter::kIsRate};
}

void pack(benchmark::State& state, WeightType type) {
  const FormatInfo& format = format_info(type);
  constexpr int kOutputs = 1536, kColumns = 1536;
  const auto values = gaussians(static_cast<size_t>(kOutputs) * kColumns, 1);
  std::vector<std::byte> blocks(values.size() / format.block_elements * format.block_bytes);
  format.encode(values.data(), blocks.data(), values.size());
  const MatrixView view{type, kOutputs, kColumns, blocks.data()};
  const std::shared_ptr<std::byte> out = WeightMemory().allocate(kernels().packed_bytes(view));
  for (auto _ : state) kernels().pack(view, 0, kOutputs / kernels().row_unit, out.get());
  report_bytes(state, static_cast<double>(blocks.size()));
}

// ---- attention ----

constexpr int kDepth = 4096;

// Lanes of kDepth rows at positions that run on, in pages all over an arena.
class FarLanes {
 public:
  FarLanes(CacheType type, int head_dim) : page_bytes_(kv_page_bytes(type, head_dim)) {
    constexpr int kPages = kDepth / kPageRows;
    lanes_ = static_cast<int>(kFarBytes / (2 * kPages * page_bytes_)) + 1;
    const auto pages = static_cast<uint32_t>(2 * kPages * lanes_);
    arena_ = WeightMemory().allocate(pages * page_bytes_);
    view_ = {arena_.get(), page_bytes_, type, head_dim};
    const std::vector<float> rows = gaussians(static_cast<size_t>(head_dim) * 64, 3);
    for (uint32_t page = 0; page < pages; ++page)
      for (int row = 0; row < kPageRows; ++row)
        kernels().store_row(type, page % 2 == 0 ? Part::kKey : Part::kValue, head_dim, view_.page(page), row,
                            &rows[static_cast<size_t>((page + row) % 64) * head_dim]);
    // As a growing cache takes them: a page of every lane, then the next of every lane.
    for (int lane = 0; lane < lanes_; ++lane)
      for (int i = 0; i < kPages; ++i) {
        const auto page = static_cast<uint32_t>(2 * (i * lanes_ + lane));
        keys_.push_back({page, 0, kPageRows, i * kPageRows});
        values_.push_back({page + 1, 0, kPageRows, i * kPageRows});
      }
    for (int i = 0; i < kDepth; ++i) positions_.push_back(i);
  }
  int lanes() const { return lanes_; }
  size_t lane_bytes() const { return 2 * page_bytes_ * (kDepth / kPageRows); }
  // Rows [block * kAttentionBlock, + kAttentionBlock) of a lane.
  AttentionBlock block(int lane, int block) const {
    constexpr int kPages = kAttentionBlock / kPageRows;
    const int first = lane * (kDepth / kPageRows) + block * kPages;
    AttentionBlock out{};
    out.pages = view_;
    out.keys = {&keys_[first], 0};
    out.values = {&values_[first], 0};
    out.positions = positions_.data();
    out.rows = kAttentionBlock;
    return out;
  }

 private:
  size_t page_bytes_;
  int lanes_;
  std::shared_ptr<std::byte> arena_;
  KvPagesView view_;
  std::vector<KvSpan> keys_, values_;
  std::vector<int32_t> positions_;
};

void attention(benchmark::State& state, CacheType type, int heads, int tokens) {
  constexpr int kHeadDim = 64;
  static FarLanes* lanes = nullptr;
  static CacheType lanes_type;
  if (lanes == nullptr || lanes_type != type) {
    delete lanes;
    lanes = new FarLanes(lanes_type = type, kHeadDim);
  }
  ModelConfig config{};
  config.rotary_dim = kHeadDim;
  config.rope_base = 100000;
  RopeTables rope(config);
  rope.reserve(kDepth + kPageRows);
  const int vectors = tokens * heads;
  const std::vector<float> q = gaussians(static_cast<size_t>(vectors) * kHeadDim, 5);
  std::vector<float> out(static_cast<size_t>(vectors) * (kHeadDim + 2));
  std::vector<AttentionQuery> queries;
  for (int t = 0; t < tokens; ++t)
    queries.push_back(
        {&q[static_cast<size_t>(t) * heads * kHeadDim],
         kDepth - tokens + t,
         kAttentionBlock,
         {&out[t * heads], &out[vectors + t * heads], &out[2 * vectors + t * heads * kHeadDim]}});
  const std::shared_ptr<std::byte> scratch =
      WeightMemory().allocate(attention_scratch(kHeadDim) * sizeof(float));
  int lane = 0;
  for (auto _ : state) {
    constexpr int kBlocks = kDepth / kAttentionBlock;
    for (int b = 0; b < kBlocks; ++b) {
      AttentionBlock block = lanes->block(lane, b);
      const AttentionBlock next =
          b + 1 < kBlocks ? lanes->block(lane, b + 1) : lanes->block((lane + 1) % lanes->lanes(), 0);
      block.rope = rope.view();
      block.heads = heads;
      block.scale = 0.125F;
      block.queries = queries;
      block.scratch = reinterpret_cast<float*>(scratch.get());
      block.next = &next;
      kernels().attention_block(block);
    }
    lane = (lane + 1) % lanes->lanes();
  }
  report_bytes(state, static_cast<double>(lanes->lane_bytes()));
  state.counters["MAC/s"] = {static_cast<double>(state.iterations()) * vectors * kDepth * 2 * kHeadDim,
                             benchmark::Counter::kIsRate};
}

// ---- small operations, in the nearest caches ----

void quantize(benchmark::State& state, int columns) {
  const std::vector<float> x = gaussians(static_cast<size_t>(columns), 1);
  std::vector<ActivationGroup> panel(static_cast<size_t>(columns / kGroup));
  for (auto _ : state) {
    kernels().quantize(x.data(), 1, columns, panel.data());
    benchmark::ClobberMemory();
  }
  report_bytes(state, static_cast<double>(columns) * sizeof(float));
}

void rms_norm(benchmark::State& state, int columns) {
  const std::vector<float> x = gaussians(static_cast<size_t>(columns), 1);
  std::vector<float> out(x.size());
  for (auto _ : state) {
    kernels().rms_norm(x.data(), x.data(), columns, 1e-5F, out.data());
    benchmark::ClobberMemory();
  }
  report_bytes(state, static_cast<double>(columns) * sizeof(float));
}

void swiglu(benchmark::State& state, int columns) {
  const std::vector<float> x = gaussians(static_cast<size_t>(columns), 1);
  std::vector<float> out(x.size());
  for (auto _ : state) {
    kernels().swiglu(x.data(), x.data(), columns, out.data());
    benchmark::ClobberMemory();
  }
  report_bytes(state, static_cast<double>(columns) * sizeof(float));
}

// ---- the list ----

template <class... Arguments>
void add(const std::string& name, void (*run)(benchmark::State&, Arguments...), Arguments... arguments) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run(state, arguments...); });
}

const bool kAdded = [] {
  for (const FormatInfo& format : weight_formats()) {
    if (format.group == nullptr) continue;
    for (const Shape& s : kShapes)
      for (const int rows : {1, 4, 16, 64})
        add("matmul/" + std::string(format.name) + "/" + std::to_string(s.outputs) + "x" +
                std::to_string(s.columns) + "/rows:" + std::to_string(rows),
            matmul, format.type, s, rows);
    if (kernels().pack != nullptr) add("pack/" + std::string(format.name), pack, format.type);
  }
  const std::pair<const char*, CacheType> types[] = {
      {"f16", CacheType::kF16}, {"f32", CacheType::kF32}, {"q8", CacheType::kQ8}};
  for (const auto& [name, type] : types)
    for (const int heads : {3, 7})
      for (const int tokens : {1, 8})
        add(std::string("attention/") + name + "/heads:" + std::to_string(heads) +
                "/tokens:" + std::to_string(tokens),
            attention, type, heads, tokens);
  for (const int columns : {576, 1536, 4864}) {
    add("quantize/" + std::to_string(columns), quantize, columns);
    add("rms_norm/" + std::to_string(columns), rms_norm, columns);
    add("swiglu/" + std::to_string(columns), swiglu, columns);
  }
  return true;
}();

}  // namespace
}  // namespace kvfold

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("kernels", kvfold::kernels().name);
  benchmark::AddCustomContext("read GB/s", std::to_string(kvfold::machine_reads() / 1e9));
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
