// Arrays as NumPy files.
#pragma once

#include <span>
#include <string>

namespace kvfold::cli {

// The header of a .npy file, version 1.0, of little-endian f32 in C order (NumPy's format specification, NEP
// 1); the elements follow it.
std::string npy_header(std::span<const size_t> shape);

}  // namespace kvfold::cli
