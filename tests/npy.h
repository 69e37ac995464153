// Arrays that Python wrote.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/temporary.h"

namespace kvfold::testing {

// The elements of a .npy file of version 1.0 (NEP 1): ten bytes, the last two of them the header's length,
// then the header, then the array. Empty when there is no such file.
template <class T>
std::vector<T> read_npy(const std::string& path) {
  const std::string bytes = TemporaryFolder::read(path);
  if (bytes.size() < 10) return {};
  const size_t begin = 10 + static_cast<uint8_t>(bytes[8]) + 256 * static_cast<uint8_t>(bytes[9]);
  std::vector<T> out((bytes.size() - begin) / sizeof(T));
  std::memcpy(out.data(), bytes.data() + begin, out.size() * sizeof(T));
  return out;
}

}  // namespace kvfold::testing
