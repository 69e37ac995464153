// A pool's pages in a GPU's memory, and the work on their rows that is done there.
#pragma once

#include "engine/cuda_device.h"
#include "engine/kv/page_memory.h"

namespace kvfold {

class CudaPages final : public PageMemory, private RowComputer {
 public:
  CudaPages(DeviceMemory memory, std::shared_ptr<const CudaDevice> device)
      : device_(std::move(device)), memory_(std::move(memory)) {}
  std::byte* base() const override { return memory_.get(); }
  bool on_host() const override { return false; }
  void read(size_t offset, std::span<std::byte> to) override;
  void write(size_t offset, std::span<const std::byte> from) override;
  Status status() const override { return status_; }
  RowComputer* computer() override { return this; }

 private:
  Result<bool> change_rows(const KvPagesView& pages, const RowChange& change,
                           std::span<const RowRun> runs) override;
  Status row_norms(const KvPagesView& pages, std::span<const RowRun> runs, std::span<double> norms) override;
  void copy_rows(const KvPagesView& pages, std::span<const RowCopy> copies) override;
  // Ends a copy that was asked for by a call that gave `queued`.
  void finish_copy(cudaError_t queued, const char* what);
  // An array to scratch memory, `at` bytes from its beginning.
  template <class T>
  Result<std::span<const T>> send(std::span<const T> from, size_t at);

  std::shared_ptr<const CudaDevice> device_;
  DeviceMemory memory_;
  DeviceMemory scratch_;  // runs, and what else a kernel takes or gives
  Status status_;
};

}  // namespace kvfold
