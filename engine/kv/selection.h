// Which part of a cache an operation works on: layers x KV heads x {K, V} x rows.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/status.h"
#include "kernels/kv_page.h"

namespace kvfold {

// What must be equal for rows of one cache to make sense in another.
struct CacheShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  bool operator==(const CacheShape&) const = default;
  int lanes() const { return layers * kv_heads; }
  int lane(int layer, int head) const { return layer * kv_heads + head; }
};

// Sorted, without repetition, within the shape's and the cache's ranges.
struct Selection {
  std::vector<int> layers;
  std::vector<int> heads;
  std::vector<int> rows;  // slots
  bool keys = true;
  bool values = true;

  static Selection all(const CacheShape& shape, int rows);
  // The text form: "layers=0-9,20 heads=* parts=k rows=3-12". Words may come in any order; what is not named
  // is all of it. Ranges include both ends. Errors: unknown or repeated words, reversed, overlapping,
  // negative or out-of-range ranges; the message says what was asked and what exists.
  static Result<Selection> parse(std::string_view text, const CacheShape& shape, int rows);

  // Errors: an index outside the shape or the rows, or out of order.
  Status check(const CacheShape& shape, int row_count) const;
  bool empty() const { return layers.empty() || heads.empty() || rows.empty() || (!keys && !values); }
};

// "0-9,20" within [0, count). `what` is the word for messages ("layers"). "*" is all; "" is none.
Result<std::vector<int>> parse_ranges(std::string_view text, std::string_view what, int count);

}  // namespace kvfold
