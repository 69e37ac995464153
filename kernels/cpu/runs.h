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

// Calls visit(page, first row in the page, rows, index in the block of the first) for the block's rows, in
// order.
template <class Visit>
void for_each_span(const AttentionBlock& block, Part part, Visit visit) {
  const KvSpan* spans = part == Part::kKey ? block.lane.keys : block.lane.values;
  const int count = part == Part::kKey ? block.lane.key_spans : block.lane.value_spans;
  int row = 0;
  for (int i = 0; i < count && row < block.end; row += spans[i].count, ++i) {
    const int skip = std::max(0, block.begin - row);
    const int last = std::min<int>(spans[i].count, block.end - row);
    if (skip < last)
      visit(block.pages.page(spans[i].page), spans[i].first + skip, last - skip, row + skip - block.begin);
  }
}

// Calls visit(run, index in the block of its first row) for the runs of the block's keys, in order.
template <class Visit>
void for_each_run(const AttentionBlock& block, Visit visit) {
  int row = 0;
  for (int i = 0; i < block.lane.key_spans && row < block.end; row += block.lane.keys[i].count, ++i) {
    const KvSpan& span = block.lane.keys[i];
    int at = std::max(0, block.begin - row);
    const int last = std::min<int>(span.count, block.end - row);
    const int32_t* positions = block.positions + span.slot;
    while (at < last) {
      const int32_t base = positions[at] & ~(kPageRows - 1);
      const int offset = positions[at] - base;
      int n = 1;
      while (at + n < last && positions[at + n] == positions[at] + n && offset + n < kPageRows) ++n;
      visit(Run{block.pages.page(span.page), span.first + at, n, base, offset}, row + at - block.begin);
      at += n;
    }
  }
}

// A query turned by `distance` positions. The angles' table ends somewhere; past it they are computed.
inline void turn_query(const RopeView& rope, int64_t distance, int head_dim, float scale, const float* q,
                       float* out) {
  for (int d = 0; d < head_dim; ++d) out[d] = q[d] * scale;
  const int64_t magnitude = distance < 0 ? -distance : distance;
  for (int i = 0; i < rope.pairs; ++i) {
    float c;
    float s;
    if (magnitude < rope.distances) {
      c = rope.query_cos[magnitude * rope.pairs + i];
      s = rope.query_sin[magnitude * rope.pairs + i];
    } else {
      c = static_cast<float>(std::cos(static_cast<double>(magnitude) * rope.frequencies[i]));
      s = static_cast<float>(std::sin(static_cast<double>(magnitude) * rope.frequencies[i]));
    }
    s = distance < 0 ? -s : s;
    const int a = rope.interleaved ? 2 * i : i;
    const int b = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
    const float qa = out[a];
    const float qb = out[b];
    out[a] = std::fma(qa, c, -(qb * s));
    out[b] = std::fma(qa, s, qb * c);
  }
}

// Calls visit(run, index, turned) for the runs of the block's keys, with the queries [heads][head_dim] scaled
// and turned to meet that run.
template <class Visit>
void for_each_turned_run(const AttentionBlock& block, const float* queries, int heads, Visit visit) {
  constexpr int kMostElements = 1 << 14;  // heads * head_dim of one KV head, far above any model
  thread_local float turned[kMostElements];
  const int head_dim = block.pages.head_dim;
  int32_t base = 0;
  bool have_base = false;
  for_each_run(block, [&](const Run& run, int index) {
    if (!have_base || run.base != base) {
      for (int h = 0; h < heads; ++h)
        turn_query(block.rope, static_cast<int64_t>(block.position) - run.base, head_dim, block.scale,
                   queries + h * head_dim, turned + h * head_dim);
      base = run.base;
      have_base = true;
    }
    visit(run, index, static_cast<const float*>(turned));
  });
}

}  // namespace kvfold
