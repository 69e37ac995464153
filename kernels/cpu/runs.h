// Walking over the rows of an attention block: what every kernel table does alike.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu.h"

namespace kvfold {

// Rows of one page whose positions are consecutive and share position / 32, so that one turned query meets
// them all.
struct Run {
  const std::byte* page;
  int row;  // first row in the page
  int count;
  int32_t base;  // 32 * floor(position / 32)
  int offset;    // position - base of the first row
};

// Calls visit(page, first row in the page, rows, index in the block of the first) for the block's first
// `rows` rows, in order.
template <class Visit>
void for_each_span(const AttentionBlock& block, const SpanRange& range, int rows, Visit visit) {
  const KvSpan* span = range.spans;
  int skip = range.skip;
  for (int index = 0; index < rows; ++span, skip = 0) {
    const int n = std::min(span->count - skip, rows - index);
    visit(block.pages.page(span->page), span->first + skip, n, index);
    index += n;
  }
}

// Calls visit(run, index in the block of its first row) for the runs of the block's first `rows` keys, in
// order.
template <class Visit>
void for_each_run(const AttentionBlock& block, int rows, Visit visit) {
  const KvSpan* span = block.keys.spans;
  int skip = block.keys.skip;
  for (int index = 0; index < rows; ++span, skip = 0) {
    const int32_t* positions = block.positions + span->slot + skip;
    const int row = span->first + skip;
    const int last = std::min(span->count - skip, rows - index);
    for (int at = 0; at < last;) {
      const int32_t base = positions[at] & ~(kPageRows - 1);
      const int offset = positions[at] - base;
      int n = 1;
      while (at + n < last && positions[at + n] == positions[at] + n && offset + n < kPageRows) ++n;
      visit(Run{block.pages.page(span->page), row + at, n, base, offset}, index + at);
      at += n;
    }
    index += last;
  }
}

// The cosines and sines [pairs] of a distance: from the table, or, past its end, computed into `memory`
// [2 * pairs]. `sign` is -1 where the query turns the other way.
struct Angles {
  const float* cos;
  const float* sin;
  float sign;
};
inline Angles angles_of(const RopeView& rope, int64_t distance, float* memory) {
  const int64_t magnitude = distance < 0 ? -distance : distance;
  const float sign = distance < 0 ? -1.0F : 1.0F;
  if (magnitude < rope.distances)
    return {rope.query_cos + magnitude * rope.pairs, rope.query_sin + magnitude * rope.pairs, sign};
  for (int i = 0; i < rope.pairs; ++i) {
    const double angle = static_cast<double>(magnitude) * rope.frequencies[i];
    memory[i] = static_cast<float>(std::cos(angle));
    memory[rope.pairs + i] = static_cast<float>(std::sin(angle));
  }
  return {memory, memory + rope.pairs, sign};
}

}  // namespace kvfold
