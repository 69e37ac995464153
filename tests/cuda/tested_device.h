// The device that a test runs on: the emulated one, in the orders in which the executor runs the threads of a
// block, or this machine's GPU (KVFOLD_ON_GPU), which has but one order and tells nothing of what it does.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "tests/simt/emulated_device.h"

#if !defined(KVFOLD_ON_GPU)
#include "tests/simt/executor.h"
#endif

namespace kvfold::testing {

// The backend's name.
#if defined(KVFOLD_ON_GPU)
inline constexpr const char* kDevice = "cuda";
#else
inline constexpr const char* kDevice = "simt";
#endif

// Sanitizers make the executor many times slower: tests then run on small shapes, in one order.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// A record of every access makes kernels slower still.
#if defined(KVFOLD_SHADOW)
inline constexpr bool kRecorded = true;
#else
inline constexpr bool kRecorded = false;
#endif

// All shapes, however long they take.
inline bool full() { return std::getenv("KVFOLD_CUDA_FULL") != nullptr; }

enum class ThreadOrder { kForward, kReverse, kShuffled };

inline std::vector<ThreadOrder> thread_orders() {
#if defined(KVFOLD_ON_GPU)
  return {ThreadOrder::kForward};
#else
  if (kSanitized) return {ThreadOrder::kShuffled};
  return {ThreadOrder::kForward, ThreadOrder::kReverse, ThreadOrder::kShuffled};
#endif
}

inline std::string order_name(const ::testing::TestParamInfo<ThreadOrder>& order) {
  return order.param == ThreadOrder::kForward   ? "forward"
         : order.param == ThreadOrder::kReverse ? "reverse"
                                                : "shuffled";
}

inline void use_order([[maybe_unused]] ThreadOrder order) {
#if !defined(KVFOLD_ON_GPU)
  simt::set_order(static_cast<simt::Order>(order), 7);
  simt::take_reports();
#endif
}

// Whether the executor found nothing wrong since use_order().
inline bool no_reports() {
#if !defined(KVFOLD_ON_GPU)
  return simt::take_reports().empty();
#else
  return true;
#endif
}

// What the device has done and holds. A GPU does not say.
inline std::optional<simt::DeviceUse> device_use() {
#if !defined(KVFOLD_ON_GPU)
  return simt::device_use();
#else
  return std::nullopt;
#endif
}

}  // namespace kvfold::testing
