// The executor against CUDA's definitions: what lanes exchange, in which order threads run, what is reported.
#include "tests/simt/executor.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "tests/simt/device.h"

namespace {

constexpr unsigned kAll = 0xFFFFFFFFU;

// Runs a lambda as a kernel. The host's memory is the device's here, so that tests can look at it.
template <class F>
bool run(dim3 grid, dim3 block, F&& kernel, size_t shared_bytes = 0) {
  return simt::run_grid({"test", grid, block, shared_bytes, kernel});
}

class ExecutorTest : public ::testing::Test {
 protected:
  void SetUp() override { simt::take_reports(); }
  void TearDown() override { simt::set_order(simt::Order::kForward); }
  // The single report since the test began, or why there is none.
  static std::string report() {
    const std::vector<std::string> reports = simt::take_reports();
    return reports.size() == 1 ? reports[0] : std::to_string(reports.size()) + " reports";
  }
};

void in_all_orders(const std::function<void()>& test) {
  const std::array<std::pair<simt::Order, uint64_t>, 4> orders = {{{simt::Order::kForward, 0},
                                                                   {simt::Order::kReverse, 0},
                                                                   {simt::Order::kShuffled, 1},
                                                                   {simt::Order::kShuffled, 2}}};
  for (const auto& [order, seed] : orders) {
    SCOPED_TRACE(static_cast<int>(order));
    simt::set_order(order, seed);
    test();
  }
}

// ---- shuffles: PTX ISA, shfl.sync. `clamp` and `segment` as the CUDA headers make them from the width ----

enum class Shuffle { kIndex, kUp, kDown, kXor };

int ptx_source_lane(Shuffle mode, int lane, int b, int width) {
  const int segment_mask = ~(width - 1) & 31;
  const int clamp = mode == Shuffle::kUp ? 0 : 31;
  const int max_lane = (lane & segment_mask) | (clamp & ~segment_mask);
  const int min_lane = lane & segment_mask;
  int j = 0;
  bool valid = false;
  switch (mode) {
    case Shuffle::kUp:
      j = lane - b, valid = j >= max_lane;
      break;
    case Shuffle::kDown:
      j = lane + b, valid = j <= max_lane;
      break;
    case Shuffle::kXor:
      j = lane ^ b, valid = j <= max_lane;
      break;
    case Shuffle::kIndex:
      j = min_lane | (b & ~segment_mask & 31), valid = j <= max_lane;
      break;
  }
  return valid ? j : lane;
}

template <class T>
T shuffle(Shuffle mode, T value, int b, int width) {
  switch (mode) {
    case Shuffle::kUp:
      return __shfl_up_sync(kAll, value, b, width);
    case Shuffle::kDown:
      return __shfl_down_sync(kAll, value, b, width);
    case Shuffle::kXor:
      return __shfl_xor_sync(kAll, value, b, width);
    default:
      return __shfl_sync(kAll, value, b, width);
  }
}

TEST_F(ExecutorTest, ShufflesFollowPtx) {
  in_all_orders([] {
    for (const Shuffle mode : {Shuffle::kIndex, Shuffle::kUp, Shuffle::kDown, Shuffle::kXor}) {
      for (const int width : {1, 2, 4, 8, 16, 32}) {
        for (int b = 0; b < 32; ++b) {
          std::array<double, 64> got{};
          ASSERT_TRUE(run(1, 64, [&] { got[threadIdx.x] = shuffle(mode, threadIdx.x + 0.25, b, width); }));
          for (int thread = 0; thread < 64; ++thread) {
            const int source = ptx_source_lane(mode, thread % 32, b, width);
            ASSERT_EQ(got[thread], thread / 32 * 32 + source + 0.25)
                << "mode " << static_cast<int>(mode) << " width " << width << " b " << b << " thread "
                << thread;
          }
        }
      }
    }
  });
}

TEST_F(ExecutorTest, GroupsOfLanesShuffleByThemselves) {
  in_all_orders([] {
    std::array<int, 32> got{};
    ASSERT_TRUE(run(1, 32, [&] {
      const int lane = static_cast<int>(threadIdx.x);
      if (lane % 3 == 0) {
        got[lane] = __shfl_sync(0x49249249U, lane, 27);  // lanes 0, 3, ..., 30
      } else {
        got[lane] = __shfl_sync(~0x49249249U, lane, lane % 2 == 0 ? 1 : 2);
      }
    }));
    for (int lane = 0; lane < 32; ++lane)
      EXPECT_EQ(got[lane], lane % 3 == 0 ? 27 : lane % 2 == 0 ? 1 : 2) << lane;
  });
}

TEST_F(ExecutorTest, VotesAndMatchesCountTheMaskAlone) {
  in_all_orders([] {
    std::array<unsigned, 32> ballot{}, any{}, all{}, match{};
    ASSERT_TRUE(run(1, 32, [&] {
      const unsigned lane = threadIdx.x;
      if (lane < 20) {
        ballot[lane] = __ballot_sync(0xFFFFFU, lane % 3 == 1);
        any[lane] = __any_sync(0xFFFFFU, lane == 21);
        all[lane] = __all_sync(0xFFFFFU, lane < 20);
        match[lane] = __match_any_sync(0xFFFFFU, lane / 8);
      }
    }));
    for (unsigned lane = 0; lane < 20; ++lane) {
      EXPECT_EQ(ballot[lane], 0x92492U);
      EXPECT_EQ(any[lane], 0U);
      EXPECT_EQ(all[lane], 1U);
      EXPECT_EQ(match[lane], lane < 8 ? 0xFFU : lane < 16 ? 0xFF00U : 0xF0000U);
    }
  });
}

TEST_F(ExecutorTest, PartialWarpsMeetWithoutTheLanesThatDoNotExist) {
  std::array<int, 40> got{};
  ASSERT_TRUE(run(1, 40, [&] { got[threadIdx.x] = static_cast<int>(__ballot_sync(kAll, 1)); }));
  EXPECT_EQ(got[0], -1);
  EXPECT_EQ(got[39], 0xFF);
}

// ---- barriers, atomics, indices ----

TEST_F(ExecutorTest, BarriersOrderPhasesAndCount) {
  in_all_orders([] {
    std::array<int, 96> data{}, sums{}, counts{};
    ASSERT_TRUE(run(1, 96, [&] {
      for (int phase = 0; phase < 3; ++phase) {
        data[threadIdx.x] = phase * 100;
        __syncthreads();
        sums[threadIdx.x] += data[(threadIdx.x + 50) % 96];
        counts[threadIdx.x] += __syncthreads_count(threadIdx.x % 4 == 0) +
                               1000 * __syncthreads_or(threadIdx.x == 95) +
                               100000 * __syncthreads_and(threadIdx.x != 3);
      }
    }));
    for (int i = 0; i < 96; ++i) {
      EXPECT_EQ(sums[i], 300);
      EXPECT_EQ(counts[i], 3 * (24 + 1000));
    }
  });
}

TEST_F(ExecutorTest, AtomicsGiveTheOldValueOnce) {
  in_all_orders([] {
    int sum = 5;
    unsigned counter = 0, bits = 0, least = 100, most = 0;
    float total = 0;
    std::vector<int> olds(4 * 64);
    ASSERT_TRUE(run(4, 64, [&] {
      const unsigned id = blockIdx.x * 64 + threadIdx.x;
      olds[id] = atomicAdd(&sum, 1);
      atomicInc(&counter, 9);
      atomicOr(&bits, 1U << threadIdx.x % 8);
      atomicMin(&least, id + 3);
      atomicMax(&most, id);
      atomicAdd(&total, 0.5F);
    }));
    EXPECT_EQ(sum, 5 + 256);
    EXPECT_EQ(std::set<int>(olds.begin(), olds.end()).size(), 256U);
    EXPECT_EQ(counter, 256 % 10U);
    EXPECT_EQ(bits, 0xFFU);
    EXPECT_EQ(least, 3U);
    EXPECT_EQ(most, 255U);
    EXPECT_EQ(total, 128.0F);
  });
}

TEST_F(ExecutorTest, EveryIndexRunsOnce) {
  in_all_orders([] {
    std::vector<std::array<unsigned, 6>> indices(481);
    int runs = 0;
    ASSERT_TRUE(run({2, 3, 2}, {5, 2, 4}, [&] {
      indices[atomicAdd(&runs, 1)] = {blockIdx.x,  blockIdx.y,  blockIdx.z,
                                      threadIdx.x, threadIdx.y, threadIdx.z};
      EXPECT_EQ(blockDim.x * blockDim.y * blockDim.z, 40U);
      EXPECT_EQ(gridDim.x * gridDim.y * gridDim.z, 12U);
    }));
    EXPECT_EQ(runs, 480);
    EXPECT_EQ(std::set(indices.begin(), indices.begin() + 480).size(), 480U);
  });
}

std::vector<unsigned> order_of_threads() {
  std::vector<unsigned> order(210);
  int next = 0;
  run(3, 70, [&] { order[atomicAdd(&next, 1)] = blockIdx.x * 70 + threadIdx.x; });
  return order;
}

TEST_F(ExecutorTest, OrdersAreWhatTheySay) {
  std::vector<unsigned> expected(210);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order_of_threads(), expected);
  simt::set_order(simt::Order::kReverse);
  EXPECT_EQ(order_of_threads(), std::vector<unsigned>(expected.rbegin(), expected.rend()));
  simt::set_order(simt::Order::kShuffled, 7);
  const std::vector<unsigned> shuffled = order_of_threads();
  EXPECT_EQ(order_of_threads(), shuffled);
  EXPECT_NE(shuffled, expected);
  EXPECT_EQ(std::set<unsigned>(shuffled.begin(), shuffled.end()).size(), 210U);
  simt::set_order(simt::Order::kShuffled, 8);
  EXPECT_NE(order_of_threads(), shuffled);
}

// ---- shared memory ----

template <int kSize>
__global__ void leave_traces(float* found) {
  __shared__ float fixed[kSize];
  KVFOLD_DYNAMIC_SHARED(float, dynamic);
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  found[n * 2] = fixed[threadIdx.x];
  found[n * 2 + 1] = dynamic[threadIdx.x];
  fixed[threadIdx.x] = 1.0F;
  dynamic[threadIdx.x] = 2.0F;
}
__global__ void leave_more_traces(float* found) {
  __shared__ float fixed[64];
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  found[n * 2] = found[n * 2 + 1] = fixed[threadIdx.x];
  fixed[threadIdx.x] = 1.0F;
}

TEST_F(ExecutorTest, SharedMemoryBeginsAsNaNInEveryBlock) {
  constexpr size_t kBytes = 3 * 64 * 2 * sizeof(float);
  float* device = nullptr;
  ASSERT_EQ(cudaMalloc(&device, kBytes), cudaSuccess);
  std::vector<float> found(kBytes / 4);
  for (const bool in_template : {false, true}) {
    ASSERT_EQ(cudaMemset(device, 0, kBytes), cudaSuccess);
    if (in_template) {
      KVFOLD_LAUNCH(leave_traces<64>, 3, 64, 256, nullptr, device);
    } else {
      KVFOLD_LAUNCH(leave_more_traces, 3, 64, 0, nullptr, device);
    }
    ASSERT_EQ(cudaMemcpy(found.data(), device, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
    for (const float value : found) EXPECT_TRUE(std::isnan(value)) << in_template;
  }
  EXPECT_EQ(cudaFree(device), cudaSuccess);
}

// ---- faults. Each leaves the executor ready for the next launch, and its clean twin is silent ----

TEST_F(ExecutorTest, AbsentLanesAreReported) {
  int out = 0;
  const auto kernel = [&](unsigned mask) {
    if (threadIdx.x < 16) atomicAdd(&out, __shfl_xor_sync(mask, 1, 1));
    __syncthreads();
  };
  in_all_orders([&] {
    EXPECT_FALSE(run(2, 64, [&] { kernel(kAll); }));
    const std::string text = report();
    EXPECT_NE(text.find("shuffle deadlocks: lanes of the mask ffffffff never come; lane"), std::string::npos)
        << text;
    EXPECT_NE(text.find("waits in __syncthreads at line"), std::string::npos) << text;
    EXPECT_NE(text.find("executor_test.cpp:"), std::string::npos) << text;
    EXPECT_TRUE(run(2, 64, [&] { kernel(0xFFFFU); }));
    EXPECT_EQ(report(), "0 reports");
  });
}

TEST_F(ExecutorTest, ReturnedLanesAreReported) {
  in_all_orders([] {
    EXPECT_FALSE(run(1, 32, [] {
      if (threadIdx.x == 9) return;
      __syncwarp();
    }));
    EXPECT_NE(
        report().find("__syncwarp deadlocks: lanes of the mask ffffffff never come; lane 9 has returned"),
        std::string::npos);
  });
}

TEST_F(ExecutorTest, LanesThatMeetAtDifferentLinesAreReported) {
  const auto kernel = [] {
    if (threadIdx.x % 2 == 0) {
      __syncwarp();
    } else {
      __syncwarp();
    }
  };
  EXPECT_FALSE(run(1, 32, kernel));
  EXPECT_NE(report().find("lane 1 waits in __syncwarp at line"), std::string::npos);
}

TEST_F(ExecutorTest, MasksWithoutTheCallerOrTheSourceAreReported) {
  EXPECT_FALSE(run(1, 32, [] { __syncwarp(0xFFFFFFFEU); }));
  EXPECT_NE(report().find("in which the caller's own lane is not"), std::string::npos);
  EXPECT_FALSE(run(1, 32, [] {
    if (threadIdx.x < 4) __shfl_sync(0xFU, 1, 5);
  }));
  EXPECT_NE(report().find("shuffle reads lane 5, which is not in the mask 0000000f"), std::string::npos);
}

TEST_F(ExecutorTest, DivergentBarriersAreReported) {
  const auto skipped = [] {
    if (threadIdx.x < 64) __syncthreads();
  };
  const auto elsewhere = [] {
    if (threadIdx.x < 64) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  in_all_orders([&] {
    EXPECT_FALSE(run(1, 96, skipped));
    EXPECT_NE(report().find("divergent __syncthreads: 32 of 96 threads have returned"), std::string::npos);
    EXPECT_FALSE(run(1, 96, elsewhere));
    EXPECT_NE(report().find("divergent __syncthreads: thread"), std::string::npos);
    EXPECT_TRUE(run(1, 96, [] { __syncthreads(); }));
  });
}

TEST_F(ExecutorTest, MisalignedLoadsAndAtomicsAreReported) {
  alignas(16) std::array<int, 8> data{};
  const auto* words = reinterpret_cast<const std::byte*>(data.data());
  EXPECT_FALSE(run(1, 1, [&] {
    __ldg(reinterpret_cast<const uint4*>(words + 8));
    __syncthreads();
  }));
  EXPECT_NE(report().find("misaligned access of 16 bytes"), std::string::npos);
  EXPECT_TRUE(run(1, 1, [&] {
    __ldg(reinterpret_cast<const uint4*>(words + 16));
    __syncthreads();
  }));
}

TEST_F(ExecutorTest, TrapsAreReported) {
  EXPECT_FALSE(run(1, 64, [] {
    if (threadIdx.x == 40) __trap();
  }));
  EXPECT_NE(report().find("trap: kernel test, block (0,0,0), thread 40 (warp 1 lane 8)"), std::string::npos);
}

// ---- arithmetic ----

TEST(DeviceFunctions, IntegersFollowTheirDefinitions) {
  EXPECT_EQ(__dp4a(static_cast<int>(0x80FF7F01U), 0x02030405, 10), 10 + 1 * 5 + 127 * 4 - 1 * 3 - 128 * 2);
  EXPECT_EQ(__dp4a(0x80FF7F01U, 0x02030405U, 10U), 10U + 1 * 5 + 127 * 4 + 255 * 3 + 128 * 2);
  EXPECT_EQ(__byte_perm(0x33221100U, 0x77665544U, 0x7531U), 0x77553311U);
  EXPECT_EQ(__byte_perm(0x332211F0U, 0, 0x0088U), 0xF0F0FFFFU);
  EXPECT_EQ(__vsubss4(0x80007F10U, 0x7F01FF10U), 0x80FF7F00U);
  EXPECT_EQ(__funnelshift_r(0x11223344U, 0xAABBCCDDU, 8), 0xDD112233U);
  EXPECT_EQ(__funnelshift_l(0x11223344U, 0xAABBCCDDU, 8), 0xBBCCDD11U);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__popc(0xF0F0U), 8);
  EXPECT_EQ(__brev(1U), 0x80000000U);
  EXPECT_EQ(__umulhi(0xFFFFFFFFU, 0xFFFFFFFFU), 0xFFFFFFFEU);
}

TEST(DeviceFunctions, FloatsRoundAsNamed) {
  EXPECT_EQ(__float2int_rn(2.5F), 2);
  EXPECT_EQ(__float2int_rn(3.5F), 4);
  EXPECT_EQ(__float2int_rn(1e20F), 2147483647);
  EXPECT_EQ(__float2int_rn(NAN), 0);
  EXPECT_EQ(__float2int_rz(-2.9F), -2);
  EXPECT_EQ(max(NAN, 1.0F), 1.0F);
  EXPECT_EQ(__fmaf_rn(1.0F + 0x1p-23F, 1.0F - 0x1p-23F, -1.0F), -0x1p-46F);
}

}  // namespace
