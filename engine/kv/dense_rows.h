// Rows of one lane as files hold them, and their way from and to pages: [rows, head_dim] row-major in the
// pages' own elements, for q8 with [rows, groups] f32 scales beside them. Bits are copied, numbers are not
// converted.
//
// Pointers into files may have any alignment.
#pragma once

#include <cstddef>

#include "kernels/kv_page.h"

namespace kvfold {

inline size_t element_bytes(CacheType type) {
  return type == CacheType::kF16 ? 2 : type == CacheType::kF32 ? 4 : 1;
}

// `count` rows of a page, from row `first` on. `scales` is read and written for q8 alone.
void page_to_dense(CacheType type, Part part, int head_dim, const std::byte* page, int first, int count,
                   std::byte* elements, std::byte* scales);
void dense_to_page(CacheType type, Part part, int head_dim, const std::byte* elements,
                   const std::byte* scales, std::byte* page, int first, int count);

}  // namespace kvfold
