// Rows of one lane as files hold them, and their way from and to pages: [rows, head_dim] row-major in the
// pages' own elements, for q8 with [rows, groups] f32 scales beside them. Bits are copied, numbers are not
// converted.
//
// Pointers into files may have any alignment, so elements are moved with memcpy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kv_page.h"

namespace kvfold {

inline size_t element_bytes(CacheType type) {
  return type == CacheType::kF16 ? 2 : type == CacheType::kF32 ? 4 : 1;
}

// Copies a matrix of `rows` x `columns` elements; element (r, c) lies at r * row_step + c * column_step, in
// elements.
struct Steps {
  size_t row, column;
};
template <size_t kElement>
void copy_matrix(const std::byte* in, Steps in_steps, std::byte* out, Steps out_steps, int rows,
                 int columns) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c)
      std::memcpy(out + (r * out_steps.row + c * out_steps.column) * kElement,
                  in + (r * in_steps.row + c * in_steps.column) * kElement, kElement);
}

// How a page holds `columns` values a row: keys by column, values by row, as kv_index and kv_scale_index say.
inline Steps page_steps(Part part, int columns) {
  return part == Part::kKey ? Steps{1, kPageRows} : Steps{static_cast<size_t>(columns), 1};
}

// Copies rows first .. first + count - 1 of a page's block of [32 rows, columns] from or to dense rows.
template <size_t kElement>
void block_to_dense(Part part, int columns, const std::byte* block, int first, int count, std::byte* dense) {
  const Steps steps = page_steps(part, columns);
  const std::byte* in = block + first * steps.row * kElement;
  if (part == Part::kValue) {
    std::memcpy(dense, in, static_cast<size_t>(count) * columns * kElement);
  } else {
    copy_matrix<kElement>(in, steps, dense, {static_cast<size_t>(columns), 1}, count, columns);
  }
}
template <size_t kElement>
void dense_to_block(Part part, int columns, const std::byte* dense, std::byte* block, int first, int count) {
  const Steps steps = page_steps(part, columns);
  std::byte* out = block + first * steps.row * kElement;
  if (part == Part::kValue) {
    std::memcpy(out, dense, static_cast<size_t>(count) * columns * kElement);
  } else {
    copy_matrix<kElement>(dense, {static_cast<size_t>(columns), 1}, out, steps, count, columns);
  }
}

// `count` rows of a page, from row `first` on. `scales` is read and written for q8 alone.
inline void page_to_dense(CacheType type, Part part, int head_dim, const std::byte* page, int first,
                          int count, std::byte* elements, std::byte* scales) {
  switch (type) {
    case CacheType::kF16:
      return block_to_dense<2>(part, head_dim, page, first, count, elements);
    case CacheType::kF32:
      return block_to_dense<4>(part, head_dim, page, first, count, elements);
    case CacheType::kQ8:
      break;
  }
  block_to_dense<1>(part, head_dim, page, first, count, elements);
  block_to_dense<4>(part, kv_scale_groups(head_dim), page + static_cast<size_t>(head_dim) * kPageRows, first,
                    count, scales);
}
inline void dense_to_page(CacheType type, Part part, int head_dim, const std::byte* elements,
                          const std::byte* scales, std::byte* page, int first, int count) {
  switch (type) {
    case CacheType::kF16:
      return dense_to_block<2>(part, head_dim, elements, page, first, count);
    case CacheType::kF32:
      return dense_to_block<4>(part, head_dim, elements, page, first, count);
    case CacheType::kQ8:
      break;
  }
  dense_to_block<1>(part, head_dim, elements, page, first, count);
  dense_to_block<4>(part, kv_scale_groups(head_dim), scales, page + static_cast<size_t>(head_dim) * kPageRows,
                    first, count);
}

}  // namespace kvfold
