// What every weight format has in common.
//
// A format stores a matrix row by row as blocks of `block_elements` consecutive columns. Whatever the block
// looks like, its content is read as groups of 32 columns:
//     w[i] = scale * sub[i / 16] * q[i] + min          i in 0..31
// where q and sub are small integers. The products scale * sub * q are exact in f32 for every quantised
// format, so integer kernels and f32 kernels read the same weights.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define KVFOLD_HD __host__ __device__
#else
// On the host such functions are always inlined: code compiled for newer instruction sets must not leave
// copies that the linker could pick for everyone.
#define KVFOLD_HD [[gnu::always_inline]]
#endif

namespace kvfold {

// The values are the tensor type ids of the GGUF specification (ggml docs/gguf.md, ggml_type).
enum class WeightType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

inline constexpr int kGroup = 32;  // columns in a group: activations are quantised by the same 32

// One decoded group of a quantised format.
struct QuantGroup {
  alignas(32) int8_t q[kGroup];
  int32_t sub[2];  // factor of each half group; 1 for formats whose scale covers the whole group
  float scale;
  float min;  // 0 for formats without one

  KVFOLD_HD void set_scale(float new_scale, float new_min) {
    scale = new_scale;
    min = new_min;
    sub[0] = sub[1] = 1;
  }
};

// A row of the format table (formats.h). `decode` reads `count` columns (a multiple of block_elements) to
// f32; `encode` writes them, rounding as the format's reference encoder does. `group` is null for F32, F16
// and BF16, whose weights are not integers.
struct FormatInfo {
  WeightType type;
  const char* name;
  int block_elements;
  int block_bytes;
  bool has_min;
  void (*group)(const std::byte* block, int index, QuantGroup& out);
  void (*decode)(const std::byte* blocks, float* out, size_t count);
  void (*encode)(const float* in, std::byte* blocks, size_t count);
};

}  // namespace kvfold
