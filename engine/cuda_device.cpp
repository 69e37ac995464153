#include "engine/cuda_device.h"

#include <utility>

#include "engine/gpu_memory.h"

#if defined(KVFOLD_SIMT) && defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif

namespace kvfold {
namespace {

constexpr int kLeastCapability = 75;

// The runtime says of a missing driver what it says of an old one.
Result<int> count_devices() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess) return devices;
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  cudaGetLastError();
  if (error != cudaErrorInsufficientDriver) return cuda_status(error, "looking for a GPU");
  if (driver == 0) return Status::error("cuda: no NVIDIA driver found");
  return Status::error(fmt::format("cuda: the NVIDIA driver knows CUDA {}.{}; {}.{} is needed", driver / 1000,
                                   driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10));
}

Result<cudaDeviceProp> properties_of(int number) {
  cudaDeviceProp device{};
  KVFOLD_RETURN_IF_ERROR(
      cuda_status(cudaGetDeviceProperties(&device, number), "asking a GPU for its properties"));
  if (device.major * 10 + device.minor >= kLeastCapability) return device;
  return Status::error(fmt::format("cuda: {} has compute capability {}.{}; 7.5 or later is needed",
                                   device.name, device.major, device.minor));
}

// Where none does, the first.
int first_that_will_do(int devices) {
  for (int number = 0; number < devices; ++number)
    if (properties_of(number).ok()) return number;
  return 0;
}

}  // namespace

CudaDevice::~CudaDevice() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Result<std::shared_ptr<const CudaDevice>> CudaDevice::open(int number) {
  KVFOLD_ASSIGN_OR_RETURN(const int devices, count_devices());
  if (devices == 0) return Status::error("cuda: no GPU found");
  if (number >= devices)
    return Status::error(
        fmt::format("device {}: there is no such GPU here; the last one is {}", number, devices - 1));
  const int chosen = number < 0 ? first_that_will_do(devices) : number;
  KVFOLD_ASSIGN_OR_RETURN(const cudaDeviceProp properties, properties_of(chosen));
  std::shared_ptr<CudaDevice> device(new CudaDevice(chosen, properties));
  device->make_current();
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaStreamCreate(&device->stream_), "making a stream"));
  return std::shared_ptr<const CudaDevice>(std::move(device));
}

Status DeviceMemory::reserve(size_t bytes, const char* what) {
  if (bytes <= bytes_) return {};
  *this = {};
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error != cudaSuccess) {
    size_t free = 0;
    size_t total = 0;
    cudaGetLastError();  // not a sticky one
    cudaMemGetInfo(&free, &total);
    return Status::error(fmt::format("cuda: no memory for {}: {} bytes wanted, {} of {} free ({})", what,
                                     bytes, free, total, cudaGetErrorString(error)));
  }
  data_ = {static_cast<std::byte*>(data), [](std::byte* p) { cudaFree(p); }};
  bytes_ = bytes;
  return {};
}

Status DeviceArena::reserve(size_t bytes, const char* what) {
  *this = {};
  KVFOLD_RETURN_IF_ERROR(memory_.reserve(bytes, what));
  ASAN_POISON_MEMORY_REGION(memory_.get(), bytes);
  return {};
}

Result<DeviceMemory> DeviceArena::take(size_t bytes, const char* what) {
  DeviceMemory piece;
  if (arena_bytes(bytes) > memory_.bytes() - taken_) {
    KVFOLD_RETURN_IF_ERROR(piece.reserve(bytes, what));
    return piece;
  }
  piece.data_ = {memory_.data_, memory_.get() + taken_};
  piece.bytes_ = bytes;
  taken_ += arena_bytes(bytes);
  ASAN_UNPOISON_MEMORY_REGION(piece.get(), bytes);
  return piece;
}

}  // namespace kvfold
