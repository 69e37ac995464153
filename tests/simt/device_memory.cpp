// Device and pinned host memory, and copies.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/simt/device_state.h"
#include "tests/simt/executor.h"

namespace simt {
namespace {

using Range = std::map<const std::byte*, size_t>;

// The range that holds `address`, or the end.
Range::const_iterator find(const Range& ranges, const void* address) {
  const auto* at = static_cast<const std::byte*>(address);
  auto it = ranges.upper_bound(at);
  if (it == ranges.begin()) return ranges.end();
  --it;
  return at < it->first + it->second ? it : ranges.end();
}

bool within(const Range& ranges, const void* address, size_t bytes) {
  const auto it = find(ranges, address);
  return it != ranges.end() && static_cast<const std::byte*>(address) + bytes <= it->first + it->second;
}

void* allocate(Range& in, size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) return nullptr;
  std::memset(memory, 0xFF, bytes);
  in[static_cast<std::byte*>(memory)] = bytes;
  return memory;
}

// A copy or a fill of rows of `width` bytes.
struct Copy {
  std::byte* to;
  size_t to_pitch;
  const std::byte* from;
  size_t from_pitch;
  size_t width, height;
  bool to_device, from_device;

  size_t to_bytes() const { return height == 0 ? 0 : to_pitch * (height - 1) + width; }
  size_t from_bytes() const { return height == 0 ? 0 : from_pitch * (height - 1) + width; }

  cudaError_t run() const {
    for (size_t row = 0; row < height; ++row) {
      std::memmove(to + row * to_pitch, from + row * from_pitch, width);
      if (to_device && device().observer != nullptr) device().observer->written(to + row * to_pitch, width);
    }
    DeviceUse& use = device().use;
    if (to_device && !from_device) ++use.copies_to_device, use.bytes_to_device += width * height;
    if (!to_device && from_device) ++use.copies_to_host, use.bytes_to_host += width * height;
    return cudaSuccess;
  }
};

cudaError_t check_side(const void* address, size_t bytes, bool should_be_device, const char* which) {
  const bool begins_on_device = find(device().allocations, address) != device().allocations.end();
  if (should_be_device && !within(device().allocations, address, bytes)) {
    return mistake(std::string("copy ") + which + " device memory: " + std::to_string(bytes) + " bytes " +
                       (begins_on_device ? "reach beyond their allocation" : "that are not the device's"),
                   cudaErrorInvalidValue);
  }
  if (!should_be_device && begins_on_device) {
    return mistake(std::string("copy ") + which + " host memory: the address is the device's",
                   cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t check(Copy& copy, cudaMemcpyKind kind) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (kind == cudaMemcpyDefault) {
    copy.to_device = find(device().allocations, copy.to) != device().allocations.end();
    copy.from_device = find(device().allocations, copy.from) != device().allocations.end();
  } else {
    copy.to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    copy.from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  }
  if (copy.width * copy.height == 0) return cudaSuccess;
  if (copy.height > 1 && (copy.width > copy.to_pitch || copy.width > copy.from_pitch))
    return cudaErrorInvalidValue;
  const cudaError_t to = check_side(copy.to, copy.to_bytes(), copy.to_device, "to");
  if (to != cudaSuccess) return to;
  const cudaError_t from = check_side(copy.from, copy.from_bytes(), copy.from_device, "from");
  if (from != cudaSuccess) return from;
  const bool overlap = copy.to < copy.from + copy.from_bytes() && copy.from < copy.to + copy.to_bytes();
  if (overlap) return mistake("copy between ranges that overlap", cudaErrorInvalidValue);
  return cudaSuccess;
}

// As the runtime does it: pageable host memory is read at once, and written before the call returns; pinned
// memory is read and written when the stream gets to it.
cudaError_t copy_async(Copy copy, cudaMemcpyKind kind, cudaStream_t handle) {
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const cudaError_t error = check(copy, kind);
  if (error != cudaSuccess) return error;
  if (copy.width * copy.height == 0) return cudaSuccess;
  if (planted_failure(Call::kMemcpy)) return device().sticky = cudaErrorLaunchFailure;
  const bool pinned_to = within(device().host_allocations, copy.to, copy.to_bytes());
  const bool pinned_from = within(device().host_allocations, copy.from, copy.from_bytes());
  if (stream->capture != nullptr) return enqueue(*stream, [copy] { return copy.run(); });
  if (!copy.from_device && !pinned_from) {
    auto staged = std::make_shared<std::vector<std::byte>>(copy.from, copy.from + copy.from_bytes());
    copy.from = staged->data();
    const cudaError_t queued = enqueue(*stream, [copy, staged] { return copy.run(); });
    if (queued != cudaSuccess || copy.to_device || pinned_to) return queued;
    return drain(*stream);
  }
  const cudaError_t queued = enqueue(*stream, [copy] { return copy.run(); });
  if (queued != cudaSuccess || copy.to_device || pinned_to) return queued;
  return drain(*stream);
}

}  // namespace

bool on_device(const void* address, size_t bytes) { return within(device().allocations, address, bytes); }

size_t bytes_on(int number) {
  size_t bytes = 0;
  for (const auto& [begin, owner] : device().owners)
    if (owner == number) bytes += device().allocations.at(begin);
  return bytes;
}

Allocation find_allocation(const void* address) {
  const auto it = find(device().allocations, address);
  if (it == device().allocations.end()) return {nullptr, 0};
  return {it->first, it->second};
}

}  // namespace simt

using simt::device;
using simt::finish;

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (pointer == nullptr) return finish(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (bytes == 0) return finish(cudaSuccess);
  simt::DeviceUse& use = device().use;
  const int current = device().current;
  if (simt::planted_failure(simt::Call::kMalloc) ||
      bytes > device().memory - std::min(simt::bytes_on(current), device().memory)) {
    return finish(cudaErrorMemoryAllocation);
  }
  *pointer = simt::allocate(device().allocations, bytes);
  if (*pointer == nullptr) return finish(cudaErrorMemoryAllocation);
  device().owners[static_cast<std::byte*>(*pointer)] = current;
  use.bytes += bytes;
  use.peak_bytes = std::max(use.peak_bytes, use.bytes);
  if (device().observer != nullptr) device().observer->allocated({static_cast<std::byte*>(*pointer), bytes});
  return finish(cudaSuccess);
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return finish(cudaSuccess);
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (const cudaError_t error = simt::drain_all(); error != cudaSuccess) return finish(error);
  const auto it = device().allocations.find(static_cast<std::byte*>(pointer));
  if (it == device().allocations.end()) {
    return finish(
        simt::mistake("cudaFree of an address that cudaMalloc did not give, or that is free already",
                      cudaErrorInvalidValue));
  }
  if (device().observer != nullptr) device().observer->freed({it->first, it->second});
  device().use.bytes -= it->second;
  device().owners.erase(it->first);
  device().allocations.erase(it);
  std::free(pointer);
  return finish(cudaSuccess);
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned /*flags*/) {
  if (pointer == nullptr) return finish(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (bytes == 0) return finish(cudaSuccess);
  if (simt::planted_failure(simt::Call::kMallocHost)) return finish(cudaErrorMemoryAllocation);
  *pointer = simt::allocate(device().host_allocations, bytes);
  return finish(*pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* pointer) {
  if (pointer == nullptr) return finish(cudaSuccess);
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (const cudaError_t error = simt::drain_all(); error != cudaSuccess) return finish(error);
  if (device().host_allocations.erase(static_cast<std::byte*>(pointer)) == 0) {
    return finish(
        simt::mistake("cudaFreeHost of an address that cudaMallocHost did not give, or that is free already",
                      cudaErrorInvalidValue));
  }
  std::free(pointer);
  return finish(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = device().memory;
  *free = device().memory - std::min(device().memory, simt::bytes_on(device().current));
  return finish(device().device_count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  const simt::Copy copy{static_cast<std::byte*>(to),
                        to_pitch,
                        static_cast<const std::byte*>(from),
                        from_pitch,
                        width,
                        height,
                        false,
                        false};
  return finish(simt::copy_async(copy, kind, stream));
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return finish(error != cudaSuccess ? error : simt::drain(device().default_stream));
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr) return finish(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return finish(cudaSuccess);
  if (!simt::on_device(to, bytes)) {
    return finish(simt::mistake("memset of memory that is not, or not all, one allocation of the device",
                                cudaErrorInvalidValue));
  }
  if (simt::planted_failure(simt::Call::kMemset)) return finish(device().sticky = cudaErrorLaunchFailure);
  return finish(simt::enqueue(*stream, [to, value, bytes] {
    std::memset(to, value, bytes);
    if (device().observer != nullptr) device().observer->written(to, bytes);
    return cudaSuccess;
  }));
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
