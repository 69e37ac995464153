#include "engine/cuda_rope.h"

#include <type_traits>

namespace kvfold {
namespace {

constexpr const char* kWhat = "tables of RoPE";

}  // namespace

Status CudaRope::send(const RopeView& rope, cudaStream_t stream) {
  const auto pairs = static_cast<size_t>(rope.pairs);
  const size_t keys = pairs * kPageRows;
  const size_t queries = pairs * rope.distances;
  const size_t wanted = pairs * sizeof(double) + 2 * (keys + queries) * sizeof(float);
  // As the tables grow with the cache, for more than is wanted now.
  if (wanted > memory_.bytes()) KVFOLD_RETURN_IF_ERROR(memory_.reserve(2 * wanted, kWhat));
  std::byte* next = memory_.get();
  Status status;
  const auto copy = [&](const auto* from, size_t count) {
    auto* to = reinterpret_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(next);
    const size_t bytes = count * sizeof(*from);
    const Status done = cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), kWhat);
    if (status.ok()) status = done;
    next += bytes;
    return to;
  };
  const double* frequencies = copy(rope.frequencies, pairs);
  const float* key_cos = copy(rope.key_cos, keys);
  const float* key_sin = copy(rope.key_sin, keys);
  const float* query_cos = copy(rope.query_cos, queries);
  const float* query_sin = copy(rope.query_sin, queries);
  KVFOLD_RETURN_IF_ERROR(status);
  view_ = {key_cos, key_sin, query_cos, query_sin, frequencies, rope.distances, rope.pairs, rope.interleaved};
  frequencies_.assign(rope.frequencies, rope.frequencies + rope.pairs);
  return cuda_status(cudaStreamSynchronize(stream), kWhat);
}

}  // namespace kvfold
