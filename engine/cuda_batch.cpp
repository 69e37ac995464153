#include "engine/cuda_batch.h"

#include <algorithm>
#include <cstring>

namespace kvfold {
namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

CudaBatch::Layout CudaBatch::layout(size_t tokens, size_t sequences, size_t tables) {
  while (most_positions_ < positions_.size()) most_positions_ *= 2;
  while (most_spans_ < spans_.size()) most_spans_ *= 2;
  Layout at{};
  at.ids = aligned(tokens * sizeof(cuda::DeviceToken));
  at.begins = at.ids + aligned(tokens * sizeof(int32_t));
  at.tables = at.begins + aligned(sequences * sizeof(int32_t));
  at.positions = at.tables + aligned(tables * sizeof(cuda::DeviceTable));
  at.spans = at.positions + aligned(most_positions_ * sizeof(int32_t));
  at.bytes = at.spans + aligned(most_spans_ * sizeof(cuda::DeviceSpan));
  return at;
}

Status CudaBatch::reserve(size_t bytes) {
  KVFOLD_RETURN_IF_ERROR(memory_.reserve(bytes, "the page tables of a batch"));
  if (staging_bytes_ >= bytes) return {};
  cudaFreeHost(staging_);
  staging_ = nullptr;
  staging_bytes_ = 0;
  KVFOLD_RETURN_IF_ERROR(
      cuda_status(cudaMallocHost(reinterpret_cast<void**>(&staging_), bytes), "pinned memory for a batch"));
  staging_bytes_ = bytes;
  return {};
}

void CudaBatch::fill(const Pass& pass, const Layout& at) {
  auto* tokens = reinterpret_cast<cuda::DeviceToken*>(staging_);
  auto* ids = reinterpret_cast<int32_t*>(staging_ + at.ids);
  for (size_t s = 0; s < pass.batch.size(); ++s) {
    const BatchSequence& sequence = pass.batch[s];
    for (int i = 0; i < sequence.count; ++i) {
      const int row = sequence.row + i;
      const int slot = sequence.slot + i;
      tokens[row] = {static_cast<int32_t>(s), slot, sequence.cache->rows().positions[slot], pass.tokens[row]};
      ids[row] = pass.tokens[row];
    }
  }
  const auto copy = [&](size_t offset, const auto& from) {
    if (!from.empty()) std::memcpy(staging_ + offset, from.data(), from.size() * sizeof(from[0]));
  };
  copy(at.begins, begins_);
  copy(at.tables, tables_);
  copy(at.positions, positions_);
  copy(at.spans, spans_);
}

Status CudaBatch::send(const Pass& pass, cudaStream_t stream) {
  spans_.clear();
  tables_.clear();
  positions_.clear();
  begins_.clear();
  most_rows_ = 0;
  for (const BatchSequence& sequence : pass.batch) {
    const KvCache& cache = *sequence.cache;
    cache.pool()->flush();
    begins_.push_back(static_cast<int32_t>(positions_.size()));
    positions_.insert(positions_.end(), cache.rows().positions.begin(), cache.rows().positions.end());
    for (int lane = 0; lane < cache.shape().lanes(); ++lane)
      for (const Part part : {Part::kKey, Part::kValue}) {
        const PageTable& table = cache.lanes().table(part, lane);
        tables_.push_back({static_cast<int32_t>(spans_.size()), static_cast<int32_t>(table.spans().size())});
        int32_t row = 0;
        for (const KvSpan& span : table.spans()) {
          spans_.push_back({span.page, span.slot, row, span.first, span.count});
          row += span.count;
        }
        // What is behind the last token of the sequence is not looked at.
        most_rows_ = std::max(most_rows_, std::min(row, sequence.slot + sequence.count));
      }
  }
  cache_ = pass.batch[0].cache;
  tokens_ = static_cast<int>(pass.tokens.size());
  const Layout at = layout(pass.tokens.size(), pass.batch.size(), tables_.size());
  KVFOLD_RETURN_IF_ERROR(reserve(at.bytes));
  fill(pass, at);
  std::byte* base = memory_.get();
  view_ = {reinterpret_cast<const cuda::DeviceToken*>(base),
           reinterpret_cast<const cuda::DeviceTable*>(base + at.tables),
           reinterpret_cast<const cuda::DeviceSpan*>(base + at.spans),
           reinterpret_cast<const int32_t*>(base + at.positions),
           reinterpret_cast<const int32_t*>(base + at.begins)};
  ids_ = reinterpret_cast<const int32_t*>(base + at.ids);
  const size_t head = at.positions + positions_.size() * sizeof(int32_t);
  KVFOLD_RETURN_IF_ERROR(
      cuda_status(cudaMemcpyAsync(base, staging_, head, cudaMemcpyHostToDevice, stream), "sending a batch"));
  return cuda_status(
      cudaMemcpyAsync(base + at.spans, staging_ + at.spans, spans_.size() * sizeof(cuda::DeviceSpan),
                      cudaMemcpyHostToDevice, stream),
      "sending page tables");
}

cuda::KvShape CudaBatch::shape(int heads) const {
  const CacheShape& shape = cache_->shape();
  return {cache_->pool()->view(), shape.lanes(), shape.kv_heads, heads / shape.kv_heads};
}

}  // namespace kvfold
