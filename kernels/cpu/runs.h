// Walking over the rows of an attention block: what every kernel table does alike.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <type_traits>

#include "kernels/cpu/cpu.h"

namespace kvfold {

// Rows of one page whose positions are consecutive and share position / 32, so that one turned query meets
// them all.
struct Run {
  const std::byte* page;
  int row;  // first row in the page
  int count;
  int index;     // in the block, of the first row
  int32_t base;  // 32 * floor(position / 32)
  int offset;    // position - base of the first row
};

// Rows of one page.
struct PageRows {
  const std::byte* page;
  int row;  // first row in the page
  int count;
  int index;               // in the block, of the first row
  const std::byte* ahead;  // page to be asked for meanwhile, or null
};

// While a page is worked on, the one after the next is asked for, as memory takes longer than a page's work:
// keys, then values, then the keys of the block that comes next. This is that block's first page of keys (0)
// or the one behind it (1), or null.
inline const std::byte* first_keys(const AttentionBlock* block, int at) {
  if (block == nullptr) return nullptr;
  const SpanRange& keys = block->keys;
  if (at > 0 && keys.spans->count - keys.skip >= block->rows) return nullptr;
  return block->pages.page(keys.spans[at].page);
}

// Calls visit(PageRows) for the block's first `rows` rows, in order.
template <class Visit>
void for_each_page(const AttentionBlock& block, const SpanRange& range, int rows, Visit visit) {
  const KvSpan* span = range.spans;
  int skip = range.skip;
  for (int index = 0; index < rows; ++span, skip = 0) {
    const int n = std::min(span->count - skip, rows - index);
    const int left = rows - index - n;
    const std::byte* ahead = nullptr;
    if (left == 0) {
      ahead = first_keys(block.next, 1);
    } else {
      ahead = left <= span[1].count ? first_keys(block.next, 0) : block.pages.page(span[2].page);
    }
    visit(PageRows{block.pages.page(span->page), span->first + skip, n, index, ahead});
    index += n;
  }
}

// The common case, in a loop that becomes vector code.
inline bool consecutive(const int32_t* positions, int n) {
  int32_t difference = 0;
  for (int i = 0; i < n; ++i) difference |= positions[i] ^ (positions[0] + i);
  return difference == 0;
}

// The runs of the block's first `rows` keys, in order; returns how many.
inline int find_runs(const AttentionBlock& block, int rows, Run (&runs)[kAttentionBlock]) {
  const KvSpan* span = block.keys.spans;
  int skip = block.keys.skip;
  int found = 0;
  for (int index = 0; index < rows; ++span, skip = 0) {
    const int32_t* positions = block.positions + span->slot + skip;
    const int row = span->first + skip;
    const int last = std::min(span->count - skip, rows - index);
    for (int at = 0; at < last;) {
      const int32_t base = positions[at] & ~(kPageRows - 1);
      const int offset = positions[at] - base;
      const int most = std::min(last - at, kPageRows - offset);
      int n = consecutive(positions + at, most) ? most : 1;
      if (n < most)
        while (n < most && positions[at + n] == positions[at] + n) ++n;
      runs[found++] = {block.pages.page(span->page), row + at, n, index + at, base, offset};
      at += n;
    }
    index += last;
  }
  return found;
}

// What is asked for during run i of `count`, whose rows are the block's first `rows`.
inline const std::byte* ahead_of_run(const AttentionBlock& block, const Run* runs, int count, int i,
                                     int rows) {
  if (i + 2 < count) return runs[i + 2].page == runs[i + 1].page ? nullptr : runs[i + 2].page;
  const SpanRange& values = block.values;
  if (i + 2 == count) return block.pages.page(values.spans->page);
  return values.spans->count - values.skip < rows ? block.pages.page(values.spans[1].page) : nullptr;
}

// Asks memory for a page bit by bit while another is worked on: asked for all at once, it would keep that
// one's loads waiting.
class Ahead {
 public:
  // `page`: null for none. `steps`: calls of ask() that are going to come.
  Ahead(const std::byte* page, size_t bytes, int steps)
      : at_(reinterpret_cast<const char*>(page)),
        end_(page == nullptr ? at_ : at_ + bytes),
        lines_(static_cast<int>((bytes / kLine + steps - 1) / steps)) {}
  [[gnu::always_inline]] inline void ask() {
    for (int i = 0; i < lines_ && at_ < end_; ++i, at_ += kLine) __builtin_prefetch(at_, 0, 3);
  }

 private:
  static constexpr size_t kLine = 64;
  const char *at_, *end_;
  int lines_;
};

// Calls visit with n as a constant, 1 <= n <= Most.
template <int Most, class Visit>
[[gnu::always_inline]] inline void with_constant(int n, Visit visit) {
  if constexpr (Most > 1) {
    if (n < Most) return with_constant<Most - 1>(n, visit);
  }
  visit(std::integral_constant<int, Most>());
}

// How the vectors (query heads of tokens) of a tile are taken for its values: add(first, last, begin, end) is
// called for the rows that all of them see, then for what those that see equally many see beyond.
template <class Vector, class Add>
void for_rows_seen(std::span<const Vector> vectors, const Add& add) {
  const auto n = static_cast<int>(vectors.size());
  int least = kAttentionBlock;
  for (const Vector& v : vectors) least = std::min(least, v.rows);
  add(0, n, 0, least);
  for (int v = 0; v < n;) {
    int last = v + 1;
    while (last < n && vectors[last].rows == vectors[v].rows) ++last;
    if (vectors[v].rows > least) add(v, last, least, vectors[v].rows);
    v = last;
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
