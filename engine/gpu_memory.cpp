#include "engine/gpu_memory.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "engine/model.h"
#include "kernels/cuda/packed.h"
#include "kernels/cuda/scratch.h"

namespace kvfold {
namespace {

constexpr size_t kSpareBytes = size_t{256} << 20;  // left to tables, the driver, cuBLAS and the display

size_t mib(size_t bytes) { return (bytes + (size_t{1} << 20) - 1) >> 20; }

std::array<const MatrixView*, 7> products(const LayerTensors& t) {
  return {&t.wq, &t.wk, &t.wv, &t.wo, &t.gate, &t.up, &t.down};
}

// Matrices packed (kernels/cuda/packed.h), norms and biases as f32.
size_t weight_bytes(const ModelSource& source) {
  size_t bytes = 0;
  const auto matrix = [&](const MatrixView& view) {
    bytes += arena_bytes(cuda::packed_layout(view.type, view.rows, view.columns).bytes);
  };
  const auto vector = [&](const MatrixView& view) {
    if (view.data != nullptr)
      bytes += arena_bytes(static_cast<size_t>(view.rows * view.columns) * sizeof(float));
  };
  matrix(source.embedding);
  vector(source.output_norm);
  if (!source.tied_output) matrix(source.output);
  for (const LayerTensors& t : source.layers) {
    for (const MatrixView* view : products(t)) matrix(*view);
    for (const MatrixView* view :
         {&t.attention_norm, &t.bq, &t.bk, &t.bv, &t.bo, &t.q_norm, &t.k_norm, &t.ffn_norm})
      vector(*view);
  }
  return bytes;
}

}  // namespace

GpuScratch gpu_scratch(const ModelSource& source, int rows, Prefill prefill) {
  const ModelConfig& c = source.config;
  const auto n = static_cast<size_t>(rows);
  const auto groups =
      static_cast<size_t>((std::max({c.model_dim, c.heads * c.head_dim, c.ffn_dim}) + kGroup - 1) / kGroup);
  GpuScratch s{};
  s.keys = cuda::likeliest_scratch_keys(std::min(rows, Model::kLogitRows), c.vocab_size,
                                        std::min(cuda::kMostLikeliest, c.vocab_size)) *
           sizeof(uint64_t);
  s.q = n * groups * kGroup;
  s.scales = n * groups * sizeof(float);
  s.gate = s.up = n * static_cast<size_t>(c.ffn_dim) * sizeof(float);
  s.normed = n * static_cast<size_t>(c.model_dim) * sizeof(float);
  s.partials = kGpuAttentionBytes;
  if (prefill == Prefill::kTiles || rows <= cuda::kMostVecRows) return s;
  for (const LayerTensors& t : source.layers)
    for (const MatrixView* view : products(t)) {
      s.decoded = std::max(s.decoded, static_cast<size_t>(view->rows) * view->columns * sizeof(float));
      s.blas_out = std::max(s.blas_out, n * static_cast<size_t>(view->rows) * sizeof(float));
    }
  s.workspace = kBlasWorkspaceBytes;
  return s;
}

GpuPlan gpu_plan(const ModelSource& source, int rows, Prefill prefill) {
  GpuPlan plan{};
  plan.weights = weight_bytes(source);
  for (const int64_t floats : Model::activation_floats(source.config, rows))
    plan.activations += arena_bytes(static_cast<size_t>(floats) * sizeof(float));
  const GpuScratch s = gpu_scratch(source, rows, prefill);
  for (const size_t bytes : {s.keys, s.q, s.scales, s.gate, s.up, s.normed, s.partials})
    plan.scratch += arena_bytes(bytes);
  for (const size_t bytes : {s.decoded, s.blas_out, s.workspace})
    if (bytes > 0) plan.cublas += arena_bytes(bytes);
  return plan;
}

Result<GpuPlan> plan_gpu_memory(const ModelSource& source, const MemoryWanted& wanted, Prefill prefill,
                                const Gpu& gpu) {
  const ModelConfig& c = source.config;
  GpuPlan plan = gpu_plan(source, wanted.rows, prefill);
  const size_t page = kv_page_bytes(wanted.type, c.head_dim);
  const size_t least_pages = static_cast<size_t>(2) * c.layers * c.kv_heads * page;  // one in every lane
  const size_t fixed = plan.arena() + kSpareBytes;
  if (gpu.free < fixed + gpu_chunks(least_pages))
    return Status::error(fmt::format(
        "{}: does not fit the GPU: {} MiB of weights, {} of activations, {} of scratch, {} for cuBLAS, {} "
        "kept free and {} of pages wanted, {} of {} MiB free on {}",
        source.path, mib(plan.weights), mib(plan.activations), mib(plan.scratch), mib(plan.cublas),
        mib(kSpareBytes), mib(least_pages), mib(gpu.free), mib(gpu.total), gpu.name));
  // Half of what is left, so that a second model finds room.
  plan.pages = std::min(wanted.cache_bytes, std::max(least_pages, (gpu.free - fixed) / 2)) / page * page;
  return plan;
}

std::string describe(const GpuPlan& plan, const Gpu& gpu) {
  const std::string cublas = plan.cublas > 0 ? fmt::format(", cuBLAS {} MiB", mib(plan.cublas)) : "";
  return fmt::format(
      "{}: weights {} MiB, activations {} MiB, scratch {} MiB{}, pages {} MiB; {} of {} MiB free", gpu.name,
      mib(plan.weights), mib(plan.activations), mib(plan.scratch), cublas, mib(plan.pages), mib(gpu.free),
      mib(gpu.total));
}

}  // namespace kvfold
