// What the parts of the runtime's stand-in share: the device's state, and how work is put on streams. Not for
// tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/simt/emulated_device.h"
#include "tests/simt/include/cuda_runtime_api.h"

namespace simt {

using Work = std::function<cudaError_t()>;

struct QueuedWork {
  uint64_t number;  // in the order in which the program asked for it, over all streams
  Work run;
};

struct PlantedFailure {
  int countdown = 0;  // calls until it happens; 0: none
  bool forever = false;
};

}  // namespace simt

// The types behind the runtime's handles.
struct CUgraph_st {
  std::vector<simt::Work> work;
};
struct CUgraphExec_st {
  std::vector<simt::Work> work;
};
struct CUstream_st {
  bool follows_default;  // made without cudaStreamNonBlocking
  int device = 0;
  std::deque<simt::QueuedWork> queue;
  std::unique_ptr<CUgraph_st> capture;  // while work is being recorded
  bool capture_invalidated = false;
};
struct CUevent_st {
  CUstream_st* stream = nullptr;  // where it was recorded last
  uint64_t number = 0;            // of the work queued before it
  double seconds = 0;             // when that work was done
  bool recorded = false;
  bool timed = true;
};

namespace simt {

struct DeviceState {
  int device_count = 1;
  int current = 0;                  // of the one thread that there is
  std::map<int, int> capabilities;  // of those that were set
  int driver_version = CUDART_VERSION;
  size_t memory = kDeviceMemory;
  std::map<const std::byte*, size_t> allocations;       // device memory: begin -> bytes
  std::map<const std::byte*, int> owners;               // the devices of those
  std::map<const std::byte*, size_t> host_allocations;  // pinned host memory
  DeviceUse use{};
  std::map<Call, PlantedFailure> failures;
  std::vector<std::string> open_ranges, ranges;             // of NVTX, with those around them
  std::deque<float> elapsed;                                // that tests want to be measured
  std::map<const void*, int> shared_limits;                 // kernel -> dynamic shared memory it may use
  CUstream_st default_stream{true, 0, {}, nullptr, false};  // every device's
  std::set<std::unique_ptr<CUstream_st>> streams;
  std::set<std::unique_ptr<CUevent_st>> events;
  std::set<std::unique_ptr<CUgraph_st>> graphs;
  std::set<std::unique_ptr<CUgraphExec_st>> executables;
  uint64_t work_number = 0;
  cudaError_t sticky = cudaSuccess;  // an asynchronous error: every later call gives it
  cudaError_t last = cudaSuccess;    // what cudaGetLastError gives
  MemoryObserver* observer = nullptr;
};
DeviceState& device();

// What a runtime function returns: `error`, remembered for cudaGetLastError; the sticky error if there is
// one.
cudaError_t finish(cudaError_t error);
// A mistake that hardware would answer with `error` alone: says which, on stderr and among take_reports().
cudaError_t mistake(const std::string& text, cudaError_t error);
// True when a failure of this call was planted and is due now.
bool planted_failure(Call call);

// The stream that a handle means; null for a handle that is none.
CUstream_st* find_stream(cudaStream_t handle);
// Puts work on a stream, or into the graph that it records.
cudaError_t enqueue(CUstream_st& stream, Work work);
// Does the stream's work up to that number, and what it waits for.
cudaError_t drain(CUstream_st& stream, uint64_t number = UINT64_MAX);
cudaError_t drain_all();
// For a call that may not happen while a stream records: invalidates such recordings and says so.
cudaError_t refuse_during_capture();
bool capturing();

// The allocation that holds all of [address, address + bytes), in device memory.
bool on_device(const void* address, size_t bytes);

template <class T>
T* keep(std::set<std::unique_ptr<T>>& in, std::unique_ptr<T> object) {
  T* pointer = object.get();
  in.insert(std::move(object));
  return pointer;
}
template <class T>
bool drop(std::set<std::unique_ptr<T>>& from, T* object) {
  for (auto it = from.begin(); it != from.end(); ++it) {
    if (it->get() == object) return from.erase(it), true;
  }
  return false;
}
template <class T>
bool holds(const std::set<std::unique_ptr<T>>& objects, const T* object) {
  for (const auto& held : objects) {
    if (held.get() == object) return true;
  }
  return false;
}

}  // namespace simt
