// The layout of a KV page, and the views through which kernels read a paged cache.
//
// A page holds kPageRows rows of one lane's K or one lane's V; a lane is one (layer, KV head). Keys are
// stored by dimension, [head_dim][kPageRows], so that scores of a page's rows are made side by side without
// horizontal sums; values by row, [kPageRows][head_dim], so that a weighted sum of rows runs along them. Keys
// are stored before RoPE.
//
// q8 quantises each row by itself, in groups of kGroup dimensions, to int8 with an f32 scale (largest
// magnitude / 127), so that a row can be written without touching its neighbours. The scales follow the
// integers: [groups][kPageRows] for keys, [kPageRows][groups] for values.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace kvfold {

inline constexpr int kPageRows = 32;

enum class CacheType : uint8_t { kF16, kF32, kQ8 };
enum class Part : uint8_t { kKey, kValue };

// Consecutive rows of one page: rows first .. first + count - 1, standing at slots slot .. slot + count - 1.
struct KvSpan {
  uint32_t page;
  uint16_t first;
  uint16_t count;
  int32_t slot;
};

// One lane's rows in slot order. K and V hold the same slots but may be cut into pages differently.
struct KvLaneView {
  const KvSpan* keys;
  const KvSpan* values;
  int key_spans;
  int value_spans;
};

// The memory behind all lanes of a cache.
struct KvPagesView {
  std::byte* arena;
  size_t page_bytes;
  CacheType type;
  int head_dim;
  KVFOLD_HD std::byte* page(uint32_t id) const { return arena + static_cast<size_t>(id) * page_bytes; }
};

KVFOLD_HD inline int kv_scale_groups(int head_dim) { return (head_dim + 31) / 32; }

inline size_t kv_page_bytes(CacheType type, int head_dim) {
  const size_t elements = static_cast<size_t>(head_dim) * kPageRows;
  switch (type) {
    case CacheType::kF16:
      return elements * 2;
    case CacheType::kF32:
      return elements * 4;
    case CacheType::kQ8:
      break;
  }
  return elements + static_cast<size_t>(kv_scale_groups(head_dim)) * kPageRows * sizeof(float);
}

// Where element (row, dimension) of a page lies, counted in elements.
KVFOLD_HD inline size_t kv_index(Part part, int head_dim, int row, int dimension) {
  return part == Part::kKey ? static_cast<size_t>(dimension) * kPageRows + row
                            : static_cast<size_t>(row) * head_dim + dimension;
}

// Where the q8 scale of (row, group) lies, counted in floats from the end of the integers.
KVFOLD_HD inline size_t kv_scale_index(Part part, int head_dim, int row, int group) {
  return part == Part::kKey ? static_cast<size_t>(group) * kPageRows + row
                            : static_cast<size_t>(row) * kv_scale_groups(head_dim) + group;
}

// Whether a page can hold x. f16 makes infinity of what is 65520 or more, and no page is to hold infinity or
// NaN: attention over it is none.
KVFOLD_HD inline bool kv_holds(CacheType type, float x) {
  return std::fabs(x) < (type == CacheType::kF16 ? 65520.0F : INFINITY);
}

inline void kv_store_row(CacheType type, Part part, int head_dim, std::byte* page, int row, const float* in) {
  if (type == CacheType::kF32) {
    auto* out = reinterpret_cast<float*>(page);
    for (int d = 0; d < head_dim; ++d) out[kv_index(part, head_dim, row, d)] = in[d];
  } else if (type == CacheType::kF16) {
    auto* out = reinterpret_cast<uint16_t*>(page);
    for (int d = 0; d < head_dim; ++d) out[kv_index(part, head_dim, row, d)] = f32_to_f16(in[d]);
  } else {
    auto* out = reinterpret_cast<int8_t*>(page);
    auto* scales = reinterpret_cast<float*>(page + static_cast<size_t>(head_dim) * kPageRows);
    for (int g = 0; g * 32 < head_dim; ++g) {
      const int end = head_dim < (g + 1) * 32 ? head_dim : (g + 1) * 32;
      float largest = 0;
      for (int d = g * 32; d < end; ++d) largest = std::fmax(largest, std::fabs(in[d]));
      const float scale = largest / 127.0F;
      const float inverse = largest > 0 ? 127.0F / largest : 0.0F;
      scales[kv_scale_index(part, head_dim, row, g)] = scale;
      for (int d = g * 32; d < end; ++d)
        out[kv_index(part, head_dim, row, d)] = static_cast<int8_t>(std::nearbyint(in[d] * inverse));
    }
  }
}

inline void kv_load_row(CacheType type, Part part, int head_dim, const std::byte* page, int row, float* out) {
  if (type == CacheType::kF32) {
    const auto* in = reinterpret_cast<const float*>(page);
    for (int d = 0; d < head_dim; ++d) out[d] = in[kv_index(part, head_dim, row, d)];
  } else if (type == CacheType::kF16) {
    const auto* in = reinterpret_cast<const uint16_t*>(page);
    for (int d = 0; d < head_dim; ++d) out[d] = f16_to_f32(in[kv_index(part, head_dim, row, d)]);
  } else {
    const auto* in = reinterpret_cast<const int8_t*>(page);
    const auto* scales = reinterpret_cast<const float*>(page + static_cast<size_t>(head_dim) * kPageRows);
    for (int d = 0; d < head_dim; ++d)
      out[d] = static_cast<float>(in[kv_index(part, head_dim, row, d)]) *
               scales[kv_scale_index(part, head_dim, row, d / 32)];
  }
}

// Copies a row between pages of one layout, bit for bit.
inline void kv_copy_row(CacheType type, Part part, int head_dim, const std::byte* from, int from_row,
                        std::byte* to, int to_row) {
  const auto copy = [&](auto zero) {
    using T = decltype(zero);
    const auto* in = reinterpret_cast<const T*>(from);
    auto* out = reinterpret_cast<T*>(to);
    for (int d = 0; d < head_dim; ++d)
      out[kv_index(part, head_dim, to_row, d)] = in[kv_index(part, head_dim, from_row, d)];
  };
  switch (type) {
    case CacheType::kF16:
      return copy(uint16_t{});
    case CacheType::kF32:
      return copy(float{});
    case CacheType::kQ8:
      break;
  }
  copy(int8_t{});
  const size_t integers = static_cast<size_t>(head_dim) * kPageRows;
  const auto* in = reinterpret_cast<const float*>(from + integers);
  auto* out = reinterpret_cast<float*>(to + integers);
  for (int g = 0; g < kv_scale_groups(head_dim); ++g)
    out[kv_scale_index(part, head_dim, to_row, g)] = in[kv_scale_index(part, head_dim, from_row, g)];
}

}  // namespace kvfold
