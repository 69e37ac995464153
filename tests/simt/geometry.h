// CUDA's index types.
#pragma once

// NOLINTBEGIN(readability-identifier-naming): CUDA's names.

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1,
                 unsigned z_size = 1)  // NOLINT(google-explicit-constructor)
      : x(x_size), y(y_size), z(z_size) {}
};

// NOLINTEND(readability-identifier-naming)
