// The stand-in of the CUDA runtime and cuBLAS against their reference: when work is done, what is refused,
// what sticks.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/half.h"
#include "tests/simt/device.h"
#include "tests/simt/emulated_device.h"
#include "tests/simt/executor.h"

namespace {

__global__ void add(float* x, int n, float value) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += value;
}
__global__ void store_size(int* x, dim3 expected) {
  if (gridDim.x == expected.x && blockDim.x == expected.y) x[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    simt::reset_device();
    simt::take_reports();
  }
  void TearDown() override { simt::reset_device(); }

  static float* device_array(const std::vector<float>& values) {
    float* pointer = nullptr;
    EXPECT_EQ(cudaMalloc(&pointer, values.size() * 4), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(pointer, values.data(), values.size() * 4, cudaMemcpyHostToDevice), cudaSuccess);
    return pointer;
  }
  static std::vector<float> read(const float* pointer, size_t count) {
    std::vector<float> values(count);
    EXPECT_EQ(cudaMemcpy(values.data(), pointer, count * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  // The one report since the last call says `text`.
  static void expect_report(const std::string& text) {
    const std::vector<std::string> reports = simt::take_reports();
    ASSERT_EQ(reports.size(), 1U);
    EXPECT_NE(reports[0].find(text), std::string::npos) << reports[0];
  }
};

TEST_F(DeviceTest, MemoryBeginsAsNaNAndIsCounted) {
  float* x = nullptr;
  ASSERT_EQ(cudaMalloc(&x, 40), cudaSuccess);
  for (const float value : read(x, 10)) EXPECT_TRUE(std::isnan(value));
  EXPECT_EQ(simt::device_use().bytes, 40U);
  EXPECT_EQ(cudaFree(x), cudaSuccess);
  EXPECT_EQ(simt::device_use().allocations, 0);
  EXPECT_EQ(cudaFree(x), cudaErrorInvalidValue);
  expect_report("cudaFree of an address");
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
}

TEST_F(DeviceTest, MemoryRunsOut) {
  simt::set_device_memory(1000);
  void *first = nullptr, *second = nullptr;
  EXPECT_EQ(cudaMalloc(&first, 600), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 600), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 400U);
  EXPECT_EQ(total, 1000U);
  EXPECT_EQ(cudaFree(first), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 600), cudaSuccess);
}

TEST_F(DeviceTest, WorkIsDoneWhenSomebodyWaits) {
  float* x = device_array({1, 2, 3});
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 12), cudaSuccess);
  float value = 10;
  KVFOLD_LAUNCH(add, 1, 32, 0, stream, x, 3, value);
  value = 99;  // arguments were copied
  ASSERT_EQ(cudaMemcpyAsync(pinned, x, 12, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_TRUE(std::isnan(pinned[0]));  // too early
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
  EXPECT_EQ(pinned[0], 11);
  EXPECT_EQ(pinned[2], 13);
  // Pinned memory is read when the stream gets to it, pageable memory at once.
  std::vector<float> pageable = {5, 5, 5};
  pinned[0] = 7;
  ASSERT_EQ(cudaMemcpyAsync(x, pinned, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(x + 1, pageable.data(), 8, cudaMemcpyHostToDevice, stream), cudaSuccess);
  pinned[0] = 8;
  pageable = {6, 6, 6};
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(read(x, 3), (std::vector<float>{8, 5, 5}));
}

TEST_F(DeviceTest, StreamsWaitForEventsAndForTheDefaultStream) {
  float* x = device_array({0});
  cudaStream_t first = nullptr, second = nullptr, free = nullptr;
  ASSERT_EQ(cudaStreamCreate(&first), cudaSuccess);
  ASSERT_EQ(cudaStreamCreate(&second), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&free, cudaStreamNonBlocking), cudaSuccess);
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  KVFOLD_LAUNCH(add, 1, 1, 0, first, x, 1, 1.0F);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  KVFOLD_LAUNCH(add, 1, 1, 0, first, x, 1, 10.0F);
  ASSERT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  KVFOLD_LAUNCH(add, 1, 1, 0, second, x, 1, 100.0F);
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  std::vector<float> value(1);
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 4), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, x, 4, cudaMemcpyDeviceToHost, free), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(free), cudaSuccess);
  EXPECT_EQ(pinned[0], 101);      // not what came after the event
  EXPECT_EQ(read(x, 1)[0], 111);  // the default stream waits for the others
  KVFOLD_LAUNCH(add, 1, 1, 0, nullptr, x, 1, 1000.0F);
  KVFOLD_LAUNCH(add, 1, 1, 0, first, x, 1, 0.0F);
  ASSERT_EQ(cudaStreamSynchronize(first), cudaSuccess);  // and they for it
  ASSERT_EQ(cudaMemcpyAsync(pinned, x, 4, cudaMemcpyDeviceToHost, free), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(free), cudaSuccess);
  EXPECT_EQ(pinned[0], 1111);
}

TEST_F(DeviceTest, EventsMeasureTheWorkBetween) {
  float* x = device_array(std::vector<float>(1000));
  cudaEvent_t begin = nullptr, end = nullptr;
  ASSERT_EQ(cudaEventCreate(&begin), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(begin), cudaSuccess);
  KVFOLD_LAUNCH(add, 10, 100, 0, nullptr, x, 1000, 1.0F);
  ASSERT_EQ(cudaEventRecord(end), cudaSuccess);
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaErrorNotReady);
  ASSERT_EQ(cudaEventSynchronize(end), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaSuccess);
  EXPECT_GT(milliseconds, 0);
}

TEST_F(DeviceTest, GraphsDoAgainWhatWasCaptured) {
  float* x = device_array({0, 0});
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  float value = 3;
  KVFOLD_LAUNCH(add, 1, 2, 0, stream, x, 2, value);
  value = 50;
  ASSERT_EQ(cudaMemsetAsync(x + 1, 0, 4, stream), cudaSuccess);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(read(x, 2), (std::vector<float>{0, 0}));  // recorded, not done
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
  EXPECT_EQ(read(x, 2), (std::vector<float>{9, 0}));
  EXPECT_EQ(simt::device_use().graphs, 0);
}

TEST_F(DeviceTest, CaptureRefusesWhatWaitsOrAllocates) {
  float* x = device_array({0});
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  void* other = nullptr;
  void* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 4), cudaSuccess);
  cudaGraph_t graph = nullptr;
  const std::vector<std::function<cudaError_t()>> calls = {[&] { return cudaMalloc(&other, 4); },
                                                           [&] { return cudaFree(x); },
                                                           [&] { return cudaMallocHost(&other, 4); },
                                                           [&] { return cudaFreeHost(pinned); },
                                                           [&] { return cudaStreamSynchronize(stream); },
                                                           [&] { return cudaDeviceSynchronize(); },
                                                           [&] {
                                                             float host = 0;
                                                             return cudaMemcpy(&host, x, 4,
                                                                               cudaMemcpyDeviceToHost);
                                                           }};
  for (const auto& call : calls) {
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  }
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(read(x, 1)[0], 0);
}

TEST_F(DeviceTest, CopiesAreChecked) {
  float* x = device_array({1, 2, 3, 4});
  std::vector<float> host(8);
  EXPECT_EQ(cudaMemcpy(host.data(), x, 20, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  expect_report("reach beyond their allocation");
  EXPECT_EQ(cudaMemcpy(host.data(), x, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  expect_report("copy to device memory: 16 bytes that are not the device's");
  EXPECT_EQ(cudaMemcpy(x, x + 1, 8, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  expect_report("overlap");
  EXPECT_EQ(cudaMemset(x + 3, 0, 8), cudaErrorInvalidValue);
  simt::take_reports();
  EXPECT_EQ(cudaMemcpy(host.data(), x + 2, 8, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(host[1], 4);
  // Rows of two of a matrix of four columns.
  EXPECT_EQ(cudaMemcpy2DAsync(host.data(), 16, x, 8, 8, 2, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(host, (std::vector<float>{1, 2, 0, 0, 3, 4, 0, 0}));
}

TEST_F(DeviceTest, LaunchesAreChecked) {
  float* x = device_array({1});
  struct Bad {
    dim3 grid, block;
    size_t shared_bytes;
    cudaError_t error;
  };
  for (const Bad& bad :
       {Bad{0, 32, 0, cudaErrorInvalidConfiguration}, Bad{1, 0, 0, cudaErrorInvalidConfiguration},
        Bad{1, 1025, 0, cudaErrorInvalidConfiguration}, Bad{{1, 65536}, 1, 0, cudaErrorInvalidConfiguration},
        Bad{1, {1, 1, 65}, 0, cudaErrorInvalidConfiguration}, Bad{1, 1, 49153, cudaErrorInvalidValue}}) {
    KVFOLD_LAUNCH(add, bad.grid, bad.block, bad.shared_bytes, nullptr, x, 1, 1.0F);
    EXPECT_EQ(cudaGetLastError(), bad.error);
  }
  EXPECT_EQ(cudaFuncSetAttribute(add, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536), cudaSuccess);
  KVFOLD_LAUNCH(add, 1, 1, 65536, nullptr, x, 1, 1.0F);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(read(x, 1)[0], 2);
  int* sizes = nullptr;
  ASSERT_EQ(cudaMalloc(&sizes, 24), cudaSuccess);
  KVFOLD_LAUNCH(store_size, 2, 3, 0, nullptr, sizes, dim3(2, 3));
  std::vector<int> got(6);
  ASSERT_EQ(cudaMemcpy(got.data(), sizes, 24, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(std::accumulate(got.begin(), got.end(), 0), 6);
}

TEST_F(DeviceTest, PlantedFailuresHappenOnTheCallThatTheyName) {
  void* pointer = nullptr;
  simt::fail_call(simt::Call::kMalloc, 2);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaSuccess);
  simt::fail_call(simt::Call::kMalloc, 1, true);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorMemoryAllocation);
}

TEST_F(DeviceTest, AFailedKernelSticks) {
  float* x = device_array({1});
  simt::fail_call(simt::Call::kLaunch, 1);
  KVFOLD_LAUNCH(add, 1, 1, 0, nullptr, x, 1, 1.0F);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // not known yet
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaSuccess);
}

TEST_F(DeviceTest, AMachineWithoutAGpuSaysSo) {
  simt::set_device_count(0);
  int count = -1;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorNoDevice);
  EXPECT_STREQ(cudaGetErrorName(cudaErrorNoDevice), "cudaErrorNoDevice");
}

TEST_F(DeviceTest, DevicesHaveTheirOwnMemoryAndStreams) {
  simt::set_device_count(2);
  simt::set_capability(1, 86);
  cudaDeviceProp p{};
  ASSERT_EQ(cudaGetDeviceProperties(&p, 1), cudaSuccess);
  EXPECT_EQ(p.major * 10 + p.minor, 86);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  float* x = device_array({1});
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  EXPECT_EQ(simt::bytes_on(0), 0U);
  EXPECT_EQ(simt::bytes_on(1), 4U);
  KVFOLD_LAUNCH(add, 1, 1, 0, stream, x, 1, 1.0F);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  int current = -1;
  EXPECT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 0);
  KVFOLD_LAUNCH(add, 1, 1, 0, stream, x, 1, 1.0F);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
  expect_report("a device that is not current");
  EXPECT_EQ(read(x, 1)[0], 2);
  EXPECT_EQ(cudaFree(x), cudaSuccess);
  EXPECT_EQ(simt::bytes_on(1), 0U);
}

TEST_F(DeviceTest, ShowsAGtx1660Super) {
  cudaDeviceProp p{};
  ASSERT_EQ(cudaGetDeviceProperties(&p, 0), cudaSuccess);
  EXPECT_EQ(p.multiProcessorCount, 22);
  EXPECT_EQ(p.major * 10 + p.minor, 75);
  EXPECT_EQ(p.totalGlobalMem, size_t{6} << 30);
  EXPECT_NE(std::string(p.name).find("emulated"), std::string::npos);
  int blocks = 0;
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add, 128, 0), cudaSuccess);
  EXPECT_EQ(blocks, 8);
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add, 32, 20 << 10), cudaSuccess);
  EXPECT_EQ(blocks, 3);
}

// C = A^T B by the definition, on small integers, which every type holds exactly.
TEST_F(DeviceTest, GemmFollowsBlas) {
  constexpr int kM = 5, kN = 3, kK = 7, kLda = 9, kLdb = 8, kLdc = 6;
  std::vector<float> a(kLda * kM), b(kLdb * kN), c(kLdc * kN, 1);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 5) - 2;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 7) - 3;
  std::vector<uint16_t> a_half(a.size()), b_half(b.size());
  for (size_t i = 0; i < a.size(); ++i) a_half[i] = kvfold::f32_to_f16(a[i]);
  for (size_t i = 0; i < b.size(); ++i) b_half[i] = kvfold::f32_to_f16(b[i]);
  float* device_a = device_array(a);
  float* device_b = device_array(b);
  void *half_a = nullptr, *half_b = nullptr;
  ASSERT_EQ(cudaMalloc(&half_a, a.size() * 2), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&half_b, b.size() * 2), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(half_a, a_half.data(), a.size() * 2, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(half_b, b_half.data(), b.size() * 2, cudaMemcpyHostToDevice), cudaSuccess);
  cublasHandle_t blas = nullptr;
  ASSERT_EQ(cublasCreate(&blas), CUBLAS_STATUS_SUCCESS);
  const float alpha = 2, beta = 3;
  for (const bool half : {false, true}) {
    float* device_c = device_array(c);
    ASSERT_EQ(half ? cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, kM, kN, kK, &alpha, half_a, CUDA_R_16F,
                                  kLda, half_b, CUDA_R_16F, kLdb, &beta, device_c, CUDA_R_32F, kLdc,
                                  CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)
                   : cublasSgemm(blas, CUBLAS_OP_T, CUBLAS_OP_N, kM, kN, kK, &alpha, device_a, kLda, device_b,
                                 kLdb, &beta, device_c, kLdc),
              CUBLAS_STATUS_SUCCESS);
    const std::vector<float> got = read(device_c, c.size());
    for (int column = 0; column < kN; ++column) {
      for (int row = 0; row < kLdc; ++row) {
        float sum = 0;
        for (int i = 0; row < kM && i < kK; ++i) sum += a[row * kLda + i] * b[column * kLdb + i];
        EXPECT_EQ(got[column * kLdc + row], row < kM ? 2 * sum + 3 : 1)
            << row << " " << column << " " << half;
      }
    }
  }
  EXPECT_EQ(cublasSgemm(blas, CUBLAS_OP_T, CUBLAS_OP_N, kM, kN, kK + 3, &alpha, device_a, kLda, device_b,
                        kLdb, &beta, device_a, kLdc),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasDestroy(blas), CUBLAS_STATUS_SUCCESS);
}

}  // namespace
