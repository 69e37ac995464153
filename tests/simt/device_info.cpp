// The device's state and properties, errors, planted failures.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "tests/simt/device_state.h"
#include "tests/simt/executor.h"
#include "tests/simt/shared_variables.h"

namespace simt {

DeviceState& device() {
  static DeviceState state;
  return state;
}

cudaError_t finish(cudaError_t error) {
  if (device().sticky != cudaSuccess) error = device().sticky;
  if (error != cudaSuccess) device().last = error;
  return error;
}

cudaError_t mistake(const std::string& text, cudaError_t error) {
  report(text);
  return error;
}

bool planted_failure(Call call) {
  const auto it = device().failures.find(call);
  if (it == device().failures.end() || it->second.countdown == 0) return false;
  if (it->second.countdown > 1) {
    --it->second.countdown;
    return false;
  }
  if (!it->second.forever) it->second.countdown = 0;
  return true;
}

void fail_call(Call call, int nth, bool forever) { device().failures[call] = {nth, forever}; }

void push_range(const char* name) {
  DeviceState& d = device();
  d.open_ranges.push_back(d.open_ranges.empty() ? name : d.open_ranges.back() + "/" + name);
  d.ranges.push_back(d.open_ranges.back());
}
void pop_range() {
  if (device().open_ranges.empty()) return report("a range of NVTX ends that none began");
  device().open_ranges.pop_back();
}
std::vector<std::string> take_ranges() { return std::exchange(device().ranges, {}); }

void set_elapsed(std::vector<float> milliseconds) {
  device().elapsed.assign(milliseconds.begin(), milliseconds.end());
}
void set_device_count(int count) { device().device_count = count; }
void set_capability(int number, int capability) { device().capabilities[number] = capability; }
void set_driver_version(int version) { device().driver_version = version; }
void set_device_memory(size_t bytes) { device().memory = bytes; }
void set_memory_observer(MemoryObserver* observer) { device().observer = observer; }

void reset_device() {
  DeviceState& d = device();
  MemoryObserver* const observer = d.observer;
  for (const auto& [begin, bytes] : d.allocations) {
    if (observer != nullptr) observer->freed({begin, bytes});
    std::free(const_cast<std::byte*>(begin));
  }
  for (const auto& [begin, bytes] : d.host_allocations) std::free(const_cast<std::byte*>(begin));
  d = DeviceState();
  d.observer = observer;
}

DeviceUse device_use() {
  DeviceState& d = device();
  DeviceUse use = d.use;
  use.allocations = static_cast<int>(d.allocations.size());
  use.host_allocations = static_cast<int>(d.host_allocations.size());
  use.streams = static_cast<int>(d.streams.size());
  use.events = static_cast<int>(d.events.size());
  use.graphs = static_cast<int>(d.graphs.size() + d.executables.size());
  return use;
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return finish(cudaSuccess);
  size_t fixed = 0;
  for (const MemoryRange& variable : shared_variables(kernel)) fixed += variable.bytes;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      fixed + static_cast<size_t>(value) > (64 << 10)) {
    return finish(cudaErrorInvalidValue);
  }
  device().shared_limits[kernel] = value;
  return finish(cudaSuccess);
}

cudaError_t occupancy(int* blocks, const void* /*kernel*/, int threads, size_t shared_bytes) {
  if (threads < 1 || threads > 1024) return finish(cudaErrorInvalidValue);
  const int by_threads = 1024 / ((threads + 31) / 32 * 32);
  const size_t granules = (shared_bytes + 255) / 256 * 256;
  const int by_shared = granules == 0 ? 16 : static_cast<int>((64 << 10) / granules);
  *blocks = std::min({16, by_threads, by_shared});
  return finish(cudaSuccess);
}

}  // namespace simt

namespace {

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

#define SIMT_ERROR(name, text) \
  { name, #name, text }
constexpr ErrorText kErrors[] = {
    SIMT_ERROR(cudaSuccess, "no error"),
    SIMT_ERROR(cudaErrorInvalidValue, "invalid argument"),
    SIMT_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    SIMT_ERROR(cudaErrorInitializationError, "initialization error"),
    SIMT_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    SIMT_ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    SIMT_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    SIMT_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    SIMT_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    SIMT_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    SIMT_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    SIMT_ERROR(cudaErrorNotReady, "device not ready"),
    SIMT_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    SIMT_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    SIMT_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    SIMT_ERROR(cudaErrorNotSupported, "operation not supported"),
    SIMT_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    SIMT_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    SIMT_ERROR(cudaErrorStreamCaptureUnmatched, "stream is not capturing"),
    SIMT_ERROR(cudaErrorStreamCaptureImplicit,
               "operation would make the legacy stream depend on a capturing stream"),
    SIMT_ERROR(cudaErrorGraphExecUpdateFailure, "the graph update was not performed"),
    SIMT_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef SIMT_ERROR

const ErrorText& error_text(cudaError_t error) {
  for (const ErrorText& text : kErrors) {
    if (text.error == error) return text;
  }
  return kErrors[std::size(kErrors) - 1];
}

int attribute_value(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 << 10;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrClockRate:
      return 1785000;  // kHz
    case cudaDevAttrMultiProcessorCount:
      return simt::kMultiprocessors;
    case cudaDevAttrMemoryClockRate:
      return 7001000;  // kHz, two transfers each: 336 GB/s over 192 bits
    case cudaDevAttrGlobalMemoryBusWidth:
      return 192;
    case cudaDevAttrL2CacheSize:
      return 1536 << 10;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 1024;
    case cudaDevAttrComputeCapabilityMajor:
      return 7;
    case cudaDevAttrComputeCapabilityMinor:
      return 5;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 64 << 10;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 64 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 64 << 10;
  }
  return -1;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) { return error_text(error).name; }
const char* cudaGetErrorString(cudaError_t error) { return error_text(error).text; }

cudaError_t cudaPeekAtLastError() {
  return simt::device().sticky != cudaSuccess ? simt::device().sticky : simt::device().last;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  simt::device().last = cudaSuccess;
  return error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (simt::device().driver_version < CUDART_VERSION) return simt::finish(cudaErrorInsufficientDriver);
  *count = simt::device().device_count;
  return simt::finish(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  if (simt::device().device_count == 0) return simt::finish(cudaErrorNoDevice);
  const bool known = device >= 0 && device < simt::device().device_count;
  if (known) simt::device().current = device;
  return simt::finish(known ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = simt::device().current;
  return simt::finish(simt::device().device_count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= simt::device().device_count) return simt::finish(cudaErrorInvalidDevice);
  cudaDeviceProp p{};
  // No log may look as if a card had run.
  std::strcpy(p.name, "GeForce GTX 1660 SUPER, emulated on the host");
  p.totalGlobalMem = simt::device().memory;
  p.sharedMemPerBlock = 48 << 10;
  p.regsPerBlock = 64 << 10;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 2147483647;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.totalConstMem = 64 << 10;
  const auto capability = simt::device().capabilities.find(device);
  p.major = capability == simt::device().capabilities.end() ? 7 : capability->second / 10;
  p.minor = capability == simt::device().capabilities.end() ? 5 : capability->second % 10;
  p.multiProcessorCount = simt::kMultiprocessors;
  p.memoryBusWidth = 192;
  p.l2CacheSize = 1536 << 10;
  p.maxThreadsPerMultiProcessor = 1024;
  p.sharedMemPerMultiprocessor = 64 << 10;
  p.regsPerMultiprocessor = 64 << 10;
  p.sharedMemPerBlockOptin = 64 << 10;
  p.maxBlocksPerMultiProcessor = 16;
  *properties = p;
  return simt::finish(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= simt::device().device_count) return simt::finish(cudaErrorInvalidDevice);
  *value = attribute_value(attribute);
  return simt::finish(*value < 0 ? cudaErrorInvalidValue : cudaSuccess);
}

cudaError_t cudaDeviceReset() {
  simt::reset_device();
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return simt::finish(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = simt::device().driver_version;
  return simt::finish(cudaSuccess);
}
