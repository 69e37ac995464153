#include "engine/gpu_memory.h"

#include <fmt/core.h>

#include <algorithm>

#include "kernels/cuda/packed.h"

namespace kvfold {
namespace {

constexpr size_t kSpareBytes = size_t{256} << 20;  // left to the display, the driver and cuBLAS

size_t mib(size_t bytes) { return (bytes + (size_t{1} << 20) - 1) >> 20; }

size_t scratch_bytes(const ModelConfig& c, size_t rows) {
  const size_t most_columns = static_cast<size_t>(std::max({c.model_dim, c.heads * c.head_dim, c.ffn_dim}));
  const size_t floats =
      rows * (c.model_dim + 2 * c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim + 3 * c.ffn_dim) +
      size_t{16} * (static_cast<size_t>(c.model_dim) + c.vocab_size);
  return floats * 4 + rows * most_columns * 2 + kGpuAttentionBytes;
}

}  // namespace

int64_t gpu_weight_bytes(const ModelSource& source) {
  int64_t bytes = 0;
  const auto matrix = [&](const MatrixView& view) {
    bytes += static_cast<int64_t>(cuda::packed_layout(view.type, view.rows, view.columns).bytes);
  };
  const auto vector = [&](const MatrixView& view) {
    if (view.data != nullptr) bytes += view.rows * view.columns * static_cast<int64_t>(sizeof(float));
  };
  matrix(source.embedding);
  vector(source.output_norm);
  if (!source.tied_output) matrix(source.output);
  for (const LayerTensors& t : source.layers) {
    for (const MatrixView* view : {&t.wq, &t.wk, &t.wv, &t.wo, &t.gate, &t.up, &t.down}) matrix(*view);
    for (const MatrixView* view :
         {&t.attention_norm, &t.bq, &t.bk, &t.bv, &t.bo, &t.q_norm, &t.k_norm, &t.ffn_norm})
      vector(*view);
  }
  return bytes;
}

std::string GpuPlan::text(const Gpu& gpu) const {
  return fmt::format("{}: weights {} MiB, pages {} MiB, scratch {} MiB; {} of {} MiB free", gpu.name,
                     mib(weights), mib(pages), mib(scratch), mib(gpu.free), mib(gpu.total));
}

Result<GpuPlan> plan_gpu_memory(const ModelSource& source, const MemoryWanted& wanted, const Gpu& gpu) {
  const ModelConfig& c = source.config;
  GpuPlan plan{};
  plan.weights = static_cast<size_t>(gpu_weight_bytes(source));
  plan.scratch = scratch_bytes(c, static_cast<size_t>(wanted.rows));
  const size_t page = kv_page_bytes(wanted.type, c.head_dim);
  const size_t least_pages = static_cast<size_t>(2) * c.layers * c.kv_heads * page;  // one in every lane
  const size_t fixed = plan.weights + plan.scratch + kSpareBytes;
  if (gpu.free < fixed + least_pages)
    return Status::error(
        fmt::format("{}: does not fit the GPU: {} MiB of weights, {} of scratch, {} kept free and {} of "
                    "pages wanted, {} of {} MiB free on {}",
                    source.path, mib(plan.weights), mib(plan.scratch), mib(kSpareBytes), mib(least_pages),
                    mib(gpu.free), mib(gpu.total), gpu.name));
  // Half of what is left, so that a second model finds room.
  plan.pages = std::min(wanted.cache_bytes, std::max(least_pages, (gpu.free - fixed) / 2));
  return plan;
}

}  // namespace kvfold
