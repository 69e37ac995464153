#include "engine/cuda_pages.h"

#include <algorithm>

#include "kernels/cuda/kernels.h"

namespace kvfold {
namespace {

constexpr const char* kChange = "changing rows of a cache";
constexpr const char* kNorms = "the norms of rows";

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

void CudaPages::finish_copy(cudaError_t queued, const char* what) {
  const cudaError_t done = cudaStreamSynchronize(device_->stream());
  if (status_.ok()) status_ = cuda_status(queued != cudaSuccess ? queued : done, what);
}

void CudaPages::read(size_t offset, std::span<std::byte> to) {
  finish_copy(cudaMemcpyAsync(to.data(), memory_.get() + offset, to.size(), cudaMemcpyDeviceToHost,
                              device_->stream()),
              "reading pages of a cache");
  if (!status_.ok()) std::fill(to.begin(), to.end(), std::byte{0});
}

void CudaPages::write(size_t offset, std::span<const std::byte> from) {
  finish_copy(cudaMemcpyAsync(memory_.get() + offset, from.data(), from.size(), cudaMemcpyHostToDevice,
                              device_->stream()),
              "writing pages of a cache");
}

template <class T>
Result<std::span<const T>> CudaPages::send(std::span<const T> from, size_t at) {
  auto* to = reinterpret_cast<T*>(scratch_.get() + at);
  if (!from.empty())
    KVFOLD_RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, device_->stream()),
        kChange));
  return std::span<const T>(to, from.size());
}

Result<bool> CudaPages::change_rows(const KvPagesView& pages, const RowChange& change,
                                    std::span<const RowRun> runs) {
  if (runs.empty()) return true;
  const size_t vectors_at = aligned(runs.size_bytes());
  const size_t wanted_at = vectors_at + aligned(change.vectors.size_bytes());
  device_->make_current();
  const size_t unheld_at = wanted_at + aligned(change.wanted.size_bytes());
  KVFOLD_RETURN_IF_ERROR(scratch_.reserve(unheld_at + sizeof(unsigned), kChange));
  RowChange there = change;
  KVFOLD_ASSIGN_OR_RETURN(const std::span<const RowRun> runs_there, send(runs, 0));
  KVFOLD_ASSIGN_OR_RETURN(there.vectors, send(change.vectors, vectors_at));
  KVFOLD_ASSIGN_OR_RETURN(there.wanted, send(change.wanted, wanted_at));
  unsigned unheld = 0;
  KVFOLD_RETURN_IF_ERROR(send(std::span<const unsigned>(&unheld, 1), unheld_at).status());
  auto* unheld_there = reinterpret_cast<unsigned*>(scratch_.get() + unheld_at);
  cuda::change_rows(pages, there, runs_there, unheld_there, device_->stream());
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaGetLastError(), kChange));
  KVFOLD_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(&unheld, unheld_there, sizeof unheld, cudaMemcpyDeviceToHost, device_->stream()),
      kChange));
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(device_->stream()), kChange));
  return unheld == 0;
}

Status CudaPages::row_norms(const KvPagesView& pages, std::span<const RowRun> runs, std::span<double> norms) {
  if (runs.empty()) return {};
  const size_t norms_at = aligned(runs.size_bytes());
  device_->make_current();
  KVFOLD_RETURN_IF_ERROR(scratch_.reserve(norms_at + norms.size_bytes(), kNorms));
  KVFOLD_ASSIGN_OR_RETURN(const std::span<const RowRun> runs_there, send(runs, 0));
  auto* found = reinterpret_cast<double*>(scratch_.get() + norms_at);
  cuda::row_norms(pages, runs_there, found, device_->stream());
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaGetLastError(), kNorms));
  KVFOLD_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(norms.data(), found, norms.size_bytes(), cudaMemcpyDeviceToHost, device_->stream()),
      kNorms));
  return cuda_status(cudaStreamSynchronize(device_->stream()), kNorms);
}

void CudaPages::copy_rows(const KvPagesView& pages, std::span<const RowCopy> copies) {
  cuda::copy_rows(pages, copies, device_->stream());
}

}  // namespace kvfold
