// Results in tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "engine/status.h"

namespace kvfold::testing {

// What a call that has to succeed gives; it ends the program where it does not.
template <class T>
T must(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) std::abort();
  return std::move(*result);
}

template <class T>
std::string error_of(const Result<T>& result) {
  return result.ok() ? "no error" : result.status().message();
}

}  // namespace kvfold::testing
