// The device that the host stand-in of the CUDA runtime shows, and what tests do to it: less memory,
// failures, counts.
//
// Work is queued on streams and done when somebody waits for it (a synchronisation, a copy to pageable host
// memory), so that a result read too early is not there yet. Device memory is all ones when allocated. What
// hardware would answer with an error code, or would not answer at all (a copy beyond an allocation, a host
// pointer as a device pointer), is an error code here too, and one line on stderr.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace simt {

// The card that is shown: GeForce GTX 1660 SUPER (TU116, sm_75).
inline constexpr int kMultiprocessors = 22;
inline constexpr size_t kDeviceMemory = size_t{6} << 30;

// Everything as at the program's start: nothing allocated, no failure planted, no sticky error. Memory that
// is still allocated is freed; streams, events and graphs are forgotten.
void reset_device();

void set_device_count(int count);                 // 0: a machine without a GPU
void set_capability(int device, int capability);  // 75, unless it was set
void set_driver_version(int version);             // as cudaDriverGetVersion gives it; 0: no driver
void set_device_memory(size_t bytes);

// The runtime's functions that can be made to fail.
enum class Call {
  kMalloc,
  kMallocHost,
  kMemcpy,
  kMemset,
  kLaunch,
  kRefusedLaunch,
  kSynchronize,
  kGraph,
  kBlas
};
// The `nth` such call from now on (1: the next) fails once, or it and all after it when `forever`. kMalloc
// and kMallocHost give cudaErrorMemoryAllocation, kBlas CUBLAS_STATUS_EXECUTION_FAILED, kRefusedLaunch
// cudaErrorLaunchOutOfResources, of which cudaGetLastError alone tells, the others cudaErrorLaunchFailure,
// which sticks.
void fail_call(Call call, int nth, bool forever = false);

// What cudaEventElapsedTime gives, in this order; after them what it measures.
void set_elapsed(std::vector<float> milliseconds);

// NVTX ranges begun since the last call, each with those around it: "prefill/layer 0/linear".
std::vector<std::string> take_ranges();

struct DeviceUse {
  size_t bytes;       // of device memory that are allocated now
  size_t peak_bytes;  // the most that were
  int allocations;    // of device memory, now
  int host_allocations;
  int streams, events, graphs;  // that exist now
  uint64_t kernels;             // run since the reset
  uint64_t copies_to_device, copies_to_host;
  uint64_t bytes_to_device, bytes_to_host;
  size_t blas_workspace;  // bytes that the last product of cuBLAS was given; 0: cuBLAS' own
};
DeviceUse device_use();       // of all devices
size_t bytes_on(int device);  // of device memory that are allocated now

struct Allocation {
  const std::byte* begin;
  size_t bytes;
};
// The allocation that holds `address`, or {null, 0}. An address one past the end belongs to none.
Allocation find_allocation(const void* address);

// Told of allocations and of writes by copies; shadow.cpp is one.
class MemoryObserver {
 public:
  virtual ~MemoryObserver() = default;
  virtual void allocated(const Allocation& allocation) = 0;
  virtual void freed(const Allocation& allocation) = 0;
  virtual void written(const void* begin, size_t bytes) = 0;
};
void set_memory_observer(MemoryObserver* observer);

}  // namespace simt
