// What the kernels of a pass need to know of its batch, sent over once: tokens, page tables, positions.
#pragma once

#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/cuda_device.h"
#include "kernels/cuda/kernels.h"

namespace kvfold {

class CudaBatch {
 public:
  CudaBatch() = default;
  ~CudaBatch() { cudaFreeHost(staging_); }
  CudaBatch(const CudaBatch&) = delete;
  CudaBatch& operator=(const CudaBatch&) = delete;

  // Errors: no memory. The stream must be idle.
  Status send(const Pass& pass, cudaStream_t stream);
  const cuda::DeviceBatch& view() const { return view_; }
  const int32_t* ids() const { return ids_; }
  int tokens() const { return tokens_; }
  // Most rows that a token may see.
  int most_rows() const { return most_rows_; }
  cuda::KvShape shape(int heads) const;

 private:
  // Byte offsets of the parts in one piece of memory; parts that change from token to token have room to
  // grow, so that their addresses stay.
  struct Layout {
    size_t ids, begins, tables, positions, spans, bytes;
  };
  Layout layout(size_t tokens, size_t sequences, size_t tables);
  Status reserve(size_t bytes);
  void fill(const Pass& pass, const Layout& at);

  DeviceMemory memory_;
  std::byte* staging_ = nullptr;  // pinned
  size_t staging_bytes_ = 0;
  size_t most_positions_ = 1024;
  size_t most_spans_ = 1024;
  std::vector<cuda::DeviceSpan> spans_;
  std::vector<cuda::DeviceTable> tables_;
  std::vector<int32_t> positions_, begins_;
  cuda::DeviceBatch view_{};
  const int32_t* ids_ = nullptr;
  const KvCache* cache_ = nullptr;
  int tokens_ = 0;
  int most_rows_ = 0;
};

}  // namespace kvfold
