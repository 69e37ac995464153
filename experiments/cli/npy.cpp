#include "experiments/cli/npy.h"

#include <fmt/core.h>

#include <bit>

namespace kvfold::cli {

std::string npy_header(std::span<const size_t> shape) {
  static_assert(std::endian::native == std::endian::little);
  std::string extents;
  for (const size_t extent : shape) extents += fmt::format("{}, ", extent);
  const std::string dict =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", extents);
  constexpr size_t kPreamble = 10;  // magic, version, length
  const size_t padded = (kPreamble + dict.size() + 1 + 63) / 64 * 64 - kPreamble;
  std::string header = "\x93NUMPY";
  header += '\x01';
  header += '\0';
  header += static_cast<char>(padded & 0xFF);
  header += static_cast<char>(padded >> 8);
  header += dict;
  header.append(padded - dict.size() - 1, ' ');
  return header + '\n';
}

}  // namespace kvfold::cli
