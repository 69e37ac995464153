// What operations on caches do to rows of pages, as a pool is told it: on the host (engine/kv/page_rows.cpp)
// or on a device (kernels/cuda/cache_rows.cu), to the same bits.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kv_page.h"

namespace kvfold {

// The page tables of a cache, counted: 2 * lane + part.
KVFOLD_HD inline Part part_of(int table) { return table % 2 == 0 ? Part::kKey : Part::kValue; }

// Consecutive rows of a page, `count` of them, that become rows of another page. `other`: the rows of a
// second cache that they are mixed with or measured against.
struct RowRun {
  uint32_t from, to, other;
  int32_t table;
  uint8_t from_row, to_row, other_row, count;
};

// In f64, rounded to f32, and stored as the page's type has it.
enum class RowFormula : uint8_t {
  kMix,        // (1 - factor) x + factor other
  kAdd,        // x + factor vectors[table]
  kScale,      // factor x
  kMatchRow,   // (|other| / |x|) x; x itself where that is zero
  kMatchMean,  // (wanted[table] / |x|) x, likewise
};
struct RowChange {
  RowFormula formula;
  double factor = 0;
  std::span<const float> vectors = {};  // [tables][head_dim]
  std::span<const double> wanted = {};  // [tables]
};

// Rows copied to another page, bit for bit.
struct RowCopy {
  uint32_t from, to;
  Part part;
  uint8_t from_row, to_row, count;
};

}  // namespace kvfold
