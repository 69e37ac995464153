// Streams, events, graphs and launches: what is queued where, and when it is done.
#include <chrono>
#include <utility>

#include "tests/simt/device_state.h"
#include "tests/simt/executor.h"
#include "tests/simt/shared_variables.h"

namespace simt {
namespace {

constexpr size_t kSharedMemory = 48 << 10;
constexpr size_t kMostSharedMemory = 64 << 10;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

cudaError_t run(const Work& work) {
  DeviceState& d = device();
  if (d.sticky != cudaSuccess) return d.sticky;
  const cudaError_t error = work();
  if (error != cudaSuccess) d.sticky = error;
  return d.sticky;
}

// The default stream and the streams that follow it wait for each other's earlier work.
Work ordered_after_others(CUstream_st& stream, uint64_t number, Work work) {
  return [&stream, number, work = std::move(work)] {
    DeviceState& d = device();
    if (&stream != &d.default_stream) {
      if (stream.follows_default) drain(d.default_stream, number);
    } else {
      for (const auto& other : d.streams) {
        if (other->follows_default) drain(*other, number);
      }
    }
    return d.sticky != cudaSuccess ? d.sticky : work();
  };
}

cudaError_t check_launch(const Launch& launch, const void* kernel) {
  const dim3& g = launch.grid;
  const dim3& b = launch.block;
  if (g.x == 0 || g.y == 0 || g.z == 0 || b.x == 0 || b.y == 0 || b.z == 0) {
    return mistake(std::string("kernel ") + launch.kernel + " launched with no blocks or no threads",
                   cudaErrorInvalidConfiguration);
  }
  if (g.x > 2147483647U || g.y > 65535 || g.z > 65535 || b.x > 1024 || b.y > 1024 || b.z > 64 ||
      uint64_t{b.x} * b.y * b.z > 1024) {
    return mistake(
        std::string("kernel ") + launch.kernel + " launched with a grid or block that is too large",
        cudaErrorInvalidConfiguration);
  }
  size_t fixed = 0;
  for (const MemoryRange& variable : shared_variables(kernel)) fixed += variable.bytes;
  // 48 KB in all, unless the kernel was allowed more dynamic memory; then 64 KB in all.
  const auto limit = device().shared_limits.find(kernel);
  const bool more = limit != device().shared_limits.end();
  if (fixed > kSharedMemory || fixed + launch.shared_bytes > (more ? kMostSharedMemory : kSharedMemory) ||
      (more && launch.shared_bytes > static_cast<size_t>(limit->second))) {
    return mistake(std::string("kernel ") + launch.kernel + " launched with " + std::to_string(fixed) +
                       " bytes of static and " + std::to_string(launch.shared_bytes) +
                       " of dynamic shared memory, which is too much",
                   cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t begin_capture(CUstream_st& stream) {
  if (&stream == &device().default_stream) return cudaErrorStreamCaptureUnsupported;
  if (stream.capture != nullptr) return cudaErrorStreamCaptureInvalidated;
  stream.capture = std::make_unique<CUgraph_st>();
  stream.capture_invalidated = false;
  return cudaSuccess;
}

}  // namespace

CUstream_st* find_stream(cudaStream_t handle) {
  if (handle == nullptr) return &device().default_stream;
  return holds(device().streams, handle) ? handle : nullptr;
}

bool capturing() {
  for (const auto& stream : device().streams) {
    if (stream->capture != nullptr) return true;
  }
  return false;
}

cudaError_t refuse_during_capture() {
  if (!capturing()) return cudaSuccess;
  for (const auto& stream : device().streams) {
    if (stream->capture != nullptr) stream->capture_invalidated = true;
  }
  return mistake("a call that waits or allocates while a stream is capturing",
                 cudaErrorStreamCaptureUnsupported);
}

cudaError_t enqueue(CUstream_st& stream, Work work) {
  DeviceState& d = device();
  if (stream.capture != nullptr) {
    if (stream.capture_invalidated) return cudaErrorStreamCaptureInvalidated;
    stream.capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  if (&stream == &d.default_stream && capturing()) {
    refuse_during_capture();
    return cudaErrorStreamCaptureImplicit;
  }
  const uint64_t number = ++d.work_number;
  stream.queue.push_back({number, ordered_after_others(stream, number, std::move(work))});
  return d.sticky;
}

cudaError_t drain(CUstream_st& stream, uint64_t number) {
  while (!stream.queue.empty() && stream.queue.front().number <= number) {
    const Work work = std::move(stream.queue.front().run);
    stream.queue.pop_front();
    run(work);
  }
  return device().sticky;
}

cudaError_t drain_all() {
  drain(device().default_stream);
  for (const auto& stream : device().streams) drain(*stream);
  return device().sticky;
}

void enqueue_launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                    cudaStream_t handle, std::function<void()> body) {
  CUstream_st* stream = find_stream(handle);
  Launch launch{name, grid, block, shared_bytes, std::move(body), kernel};
  cudaError_t error = stream == nullptr ? cudaErrorInvalidResourceHandle : check_launch(launch, kernel);
  if (error == cudaSuccess && device().device_count == 0) error = cudaErrorNoDevice;
  if (error == cudaSuccess && handle != nullptr && stream->device != device().current)
    error = mistake(std::string("kernel ") + name + " launched on a stream of a device that is not current",
                    cudaErrorInvalidResourceHandle);
  if (error == cudaSuccess && planted_failure(Call::kRefusedLaunch)) error = cudaErrorLaunchOutOfResources;
  if (error == cudaSuccess) {
    error = enqueue(*stream, [launch = std::move(launch)] {
      if (planted_failure(Call::kLaunch)) return cudaErrorLaunchFailure;
      ++device().use.kernels;
      return run_grid(launch) ? cudaSuccess : cudaErrorLaunchFailure;
    });
  }
  finish(error);
}

}  // namespace simt

using simt::device;
using simt::finish;

// ---- streams ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  auto made = std::make_unique<CUstream_st>();
  made->follows_default = (flags & cudaStreamNonBlocking) == 0;
  made->device = device().current;
  *stream = simt::keep(device().streams, std::move(made));
  return finish(device().device_count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (!simt::holds(device().streams, stream)) return finish(cudaErrorInvalidResourceHandle);
  // The reference lets the work end; whoever wants to know when must have asked before.
  simt::drain(*stream);
  for (const auto& event : device().events) {
    if (event->stream == stream) event->stream = nullptr;
  }
  simt::drop(device().streams, stream);
  return finish(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr) return finish(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (simt::planted_failure(simt::Call::kSynchronize)) device().sticky = cudaErrorLaunchFailure;
  return finish(simt::drain(*stream));
}

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (simt::planted_failure(simt::Call::kSynchronize)) device().sticky = cudaErrorLaunchFailure;
  return finish(simt::drain_all());
}

// A program that polls must get on: the first question finds the work under way, and it is done by the next.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr) return finish(cudaErrorInvalidResourceHandle);
  const bool waiting = !stream->queue.empty();
  const cudaError_t error = simt::drain(*stream);
  return error != cudaSuccess ? finish(error) : waiting ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned /*flags*/) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr || !simt::holds(device().events, event))
    return finish(cudaErrorInvalidResourceHandle);
  if (!event->recorded || event->stream == stream || event->stream == nullptr) return finish(cudaSuccess);
  return finish(simt::enqueue(*stream, [from = event->stream, number = event->number] {
    return simt::find_stream(from) == nullptr ? cudaSuccess : simt::drain(*from, number);
  }));
}

// ---- events ----

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  auto made = std::make_unique<CUevent_st>();
  made->timed = (flags & cudaEventDisableTiming) == 0;
  *event = simt::keep(device().events, std::move(made));
  return finish(device().device_count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return finish(simt::drop(device().events, event) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr || !simt::holds(device().events, event))
    return finish(cudaErrorInvalidResourceHandle);
  const cudaError_t error = simt::enqueue(*stream, [event] {
    if (simt::holds(device().events, event)) event->seconds = simt::now();
    return cudaSuccess;
  });
  event->stream = stream;
  event->number = device().work_number;
  event->recorded = true;
  return finish(error);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (!simt::holds(device().events, event)) return finish(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = simt::refuse_during_capture(); error != cudaSuccess) return finish(error);
  if (event->stream == nullptr) return finish(cudaSuccess);
  return finish(simt::drain(*event->stream, event->number));
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (!simt::holds(device().events, event)) return finish(cudaErrorInvalidResourceHandle);
  if (event->stream == nullptr) return finish(cudaSuccess);
  const auto& queue = event->stream->queue;
  const bool waiting = !queue.empty() && queue.front().number <= event->number;
  const cudaError_t error = simt::drain(*event->stream, event->number);
  return error != cudaSuccess ? finish(error) : waiting ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!simt::holds(device().events, begin) || !simt::holds(device().events, end) || !begin->recorded ||
      !end->recorded || !begin->timed || !end->timed) {
    return finish(cudaErrorInvalidResourceHandle);
  }
  if (begin->seconds == 0 || end->seconds == 0) return cudaErrorNotReady;
  *milliseconds = static_cast<float>((end->seconds - begin->seconds) * 1e3);
  if (!device().elapsed.empty()) {
    *milliseconds = device().elapsed.front();
    device().elapsed.pop_front();
  }
  return finish(cudaSuccess);
}

// ---- graphs ----

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode /*mode*/) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr) return finish(cudaErrorInvalidResourceHandle);
  if (simt::planted_failure(simt::Call::kGraph)) return finish(cudaErrorStreamCaptureUnsupported);
  return finish(simt::begin_capture(*stream));
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  CUstream_st* stream = simt::find_stream(handle);
  *graph = nullptr;
  if (stream == nullptr) return finish(cudaErrorInvalidResourceHandle);
  if (stream->capture == nullptr) return finish(cudaErrorStreamCaptureUnmatched);
  std::unique_ptr<CUgraph_st> captured = std::move(stream->capture);
  if (std::exchange(stream->capture_invalidated, false)) return finish(cudaErrorStreamCaptureInvalidated);
  *graph = simt::keep(device().graphs, std::move(captured));
  return finish(cudaSuccess);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr) return finish(cudaErrorInvalidResourceHandle);
  *status = stream->capture == nullptr    ? cudaStreamCaptureStatusNone
            : stream->capture_invalidated ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
  return finish(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  *executable = nullptr;
  if (!simt::holds(device().graphs, graph)) return finish(cudaErrorInvalidValue);
  if (simt::planted_failure(simt::Call::kGraph)) return finish(cudaErrorMemoryAllocation);
  *executable =
      simt::keep(device().executables, std::make_unique<CUgraphExec_st>(CUgraphExec_st{graph->work}));
  return finish(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  CUstream_st* stream = simt::find_stream(handle);
  if (stream == nullptr || !simt::holds(device().executables, executable))
    return finish(cudaErrorInvalidValue);
  // A copy: the executable may be destroyed once it is launched.
  return finish(simt::enqueue(*stream, [work = executable->work] {
    for (const simt::Work& step : work) {
      if (const cudaError_t error = step(); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return finish(simt::drop(device().executables, executable) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return finish(simt::drop(device().graphs, graph) ? cudaSuccess : cudaErrorInvalidValue);
}
