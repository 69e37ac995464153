#include "engine/cpu_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>

namespace kvfold {
namespace {

// Tokens whose attention is worked on together: bounds the memory for partial results.
constexpr int kTokensAtOnce = 64;
// Tokens of one sequence, and of several, that look at a block in one item of work.
constexpr int kTokensOfSequence = 8;
constexpr int kTokensOfBatch = 32;

int blocks_of(int rows) { return (rows + kAttentionBlock - 1) / kAttentionBlock; }

// Walks through a lane's spans block by block.
class SpanWalk {
 public:
  explicit SpanWalk(const KvSpan* spans) : at_{spans, 0} {}
  const SpanRange& at() const { return at_; }
  void advance(int rows) {
    while (rows > 0) {
      const int n = std::min(rows, at_.spans->count - at_.skip);
      rows -= n;
      at_.skip += n;
      if (at_.skip == at_.spans->count) at_ = {at_.spans + 1, 0};
    }
  }

 private:
  SpanRange at_;
};

// Calls visit(page, row, count, slot) for the pieces of pages that hold a block's rows; stops at false.
template <class Visit>
bool for_pieces(const SpanRange& range, int rows, Visit visit) {
  const KvSpan* span = range.spans;
  for (int skip = range.skip; rows > 0; ++span, skip = 0) {
    const int n = std::min(rows, span->count - skip);
    if (!visit(span->page, span->first + skip, n, span->slot + skip)) return false;
    rows -= n;
  }
  return true;
}

uint64_t hash_of(const AttentionBlock& block) {
  uint64_t hash = static_cast<uint64_t>(block.rows);
  for (const SpanRange* range : {&block.keys, &block.values})
    for_pieces(*range, block.rows, [&](uint32_t page, int row, int count, int) {
      hash = (hash ^ page) * 0x9E3779B97F4A7C15U;
      hash = (hash ^ static_cast<uint64_t>(row * kPageRows + count)) * 0xFF51AFD7ED558CCDU;
      return true;
    });
  return hash;
}

// Do two blocks hold the same rows of the same pages, at the same positions?
bool same_rows(const AttentionBlock& a, const AttentionBlock& b) {
  if (a.rows != b.rows) return false;
  for (const auto member : {&AttentionBlock::keys, &AttentionBlock::values}) {
    const KvSpan* span = (b.*member).spans;
    int skip = (b.*member).skip;
    const bool same = for_pieces(a.*member, a.rows, [&](uint32_t page, int row, int count, int slot) {
      if (span->page != page || span->first + skip != row || span->count - skip < count) return false;
      if (std::memcmp(a.positions + slot, b.positions + span->slot + skip, sizeof(int32_t) * count) != 0)
        return false;
      skip += count;
      if (skip == span->count) {
        ++span;
        skip = 0;
      }
      return true;
    });
    if (!same) return false;
  }
  return true;
}

}  // namespace

struct CpuAttention::Call {
  int layer;
  AttentionShape shape;
  RopeView rope;
  const float* q;
  float* out;
  int group() const { return shape.heads / shape.kv_heads; }
};

void CpuAttention::run(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                       const RopeView& rope, const float* q, float* out) {
  const Call call{layer, shape, rope, q, out};
  std::vector<BatchSequence> part;
  int tokens = 0;
  for (const BatchSequence& sequence : batch)
    for (int i = 0; i < sequence.count;) {
      const int n = std::min(sequence.count - i, kTokensAtOnce - tokens);
      part.push_back({sequence.cache, sequence.slot + i, n, sequence.row + i});
      i += n;
      tokens += n;
      if (tokens < kTokensAtOnce) continue;
      attend(part, call);
      part.clear();
      tokens = 0;
    }
  if (!part.empty()) attend(part, call);
}

// Makes the items of one sequence and KV head.
void CpuAttention::add_sequence(const BatchSequence& sequence, int head, const Call& call) {
  const KvCache& cache = *sequence.cache;
  const int lane = cache.shape().lane(call.layer, head);
  const KvLaneView view = cache.lanes().lane_view(lane);
  const int32_t* positions = cache.rows().positions.data();
  const int group = call.group();
  const int head_dim = call.shape.head_dim;
  const auto first_join = static_cast<int>(joins_.size());
  rows_.clear();
  for (int i = 0; i < sequence.count; ++i) {
    // Rows of its lane that a token sees: all but those behind its own.
    rows_.push_back(cache.lanes().table(Part::kKey, lane).rows_before(sequence.slot + i + 1));
    const int64_t at =
        (static_cast<int64_t>(sequence.row + i) * call.shape.heads + static_cast<int64_t>(head) * group) *
        head_dim;
    joins_.push_back({{}, blocks_of(rows_.back()), call.out + at});
  }
  SpanWalk keys(view.keys);
  SpanWalk values(view.values);
  for (int b = 0; b < blocks_of(rows_.back()); ++b) {
    const int begin = b * kAttentionBlock;
    // Later tokens see more: those that see nothing of the block come first.
    auto i = static_cast<int>(std::upper_bound(rows_.begin(), rows_.end(), begin) - rows_.begin());
    while (i < sequence.count) {
      const int last = std::min(i + kTokensOfSequence, sequence.count);
      const int most = std::min(kAttentionBlock, rows_[last - 1] - begin);
      items_.push_back({{cache.pool()->view(),
                         keys.at(),
                         values.at(),
                         positions,
                         call.rope,
                         group,
                         1.0F / std::sqrt(static_cast<float>(head_dim)),
                         most,
                         {},
                         nullptr},
                        b,
                        0,
                        static_cast<int>(queries_.size()),
                        last - i});
      for (; i < last; ++i) {
        queries_.push_back({call.q + (joins_[first_join + i].out - call.out),
                            positions[sequence.slot + i],
                            std::min(kAttentionBlock, rows_[i] - begin),
                            {}});
        query_joins_.push_back(first_join + i);
      }
    }
    const int rows = std::min(kAttentionBlock, rows_.back() - begin);
    keys.advance(rows);
    values.advance(rows);
  }
}

// Puts the items from `first` on that look at the same rows together.
void CpuAttention::share_blocks(size_t first) {
  for (size_t i = first; i < items_.size(); ++i) items_[i].hash = hash_of(items_[i].block);
  std::stable_sort(items_.begin() + static_cast<int64_t>(first), items_.end(),
                   [](const Item& a, const Item& b) { return a.hash < b.hash; });
  const std::vector<AttentionQuery> queries(queries_);
  const std::vector<int> query_joins(query_joins_);
  size_t kept = first;
  int next = first < items_.size() ? static_cast<int>(queries_.size()) : 0;
  for (size_t i = first; i < items_.size(); ++i) next = std::min(next, items_[i].first);
  for (size_t i = first; i < items_.size(); ++i) {
    const Item item = items_[i];
    for (int t = 0; t < item.count; ++t) {
      queries_[next + t] = queries[item.first + t];
      query_joins_[next + t] = query_joins[item.first + t];
    }
    Item* before = kept > first ? &items_[kept - 1] : nullptr;
    if (before != nullptr && before->hash == item.hash && before->count + item.count <= kTokensOfBatch &&
        same_rows(before->block, item.block)) {
      before->count += item.count;
    } else {
      items_[kept] = item;
      items_[kept++].first = next;
    }
    next += item.count;
  }
  items_.resize(kept);
}

void CpuAttention::attend(std::span<const BatchSequence> batch, const Call& call) {
  const int group = call.group();
  const int head_dim = call.shape.head_dim;
  items_.clear();
  queries_.clear();
  query_joins_.clear();
  joins_.clear();
  for (int head = 0; head < call.shape.kv_heads; ++head) {
    const size_t first = items_.size();
    for (const BatchSequence& sequence : batch) add_sequence(sequence, head, call);
    if (batch.size() > 1) share_blocks(first);
  }

  int64_t blocks = 0;
  for (const Join& join : joins_) blocks += join.blocks;
  partials_.resize(std::max(partials_.size(), static_cast<size_t>(blocks) * group * (head_dim + 2)));
  float* largest = partials_.data();
  float* sums = largest + blocks * group;
  float* values = sums + blocks * group;
  unfinished_.clear();
  int64_t at = 0;
  for (Join& join : joins_) {
    join.parts = {largest + at, sums + at, values + at * head_dim};
    at += static_cast<int64_t>(join.blocks) * group;
    unfinished_.push_back(join.blocks);
  }
  for (Item& item : items_) {
    for (int i = item.first; i < item.first + item.count; ++i) {
      const AttentionPartial& parts = joins_[query_joins_[i]].parts;
      const int64_t offset = static_cast<int64_t>(item.index) * group;
      queries_[i].out = {parts.largest + offset, parts.sums + offset, parts.values + offset * head_dim};
    }
    item.block.queries = std::span(queries_).subspan(item.first, item.count);
  }
  for (size_t i = 0; i + 1 < items_.size(); ++i) items_[i].block.next = &items_[i + 1].block;
  scratch_.resize(pool_->threads());
  pool_->run(static_cast<int64_t>(items_.size()), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) work(items_[i], thread, call);
  });
}

// Whoever finishes the last block of a token and head joins its blocks.
void CpuAttention::work(const Item& item, int thread, const Call& call) {
  constexpr size_t kAlignment = 16;  // floats
  std::vector<float>& scratch = scratch_[thread];
  scratch.resize(std::max(scratch.size(), attention_scratch(call.shape.head_dim) + kAlignment));
  void* memory = scratch.data();
  size_t room = scratch.size() * sizeof(float);
  std::align(kAlignment * sizeof(float), room - kAlignment * sizeof(float), memory, room);
  AttentionBlock block = item.block;
  block.scratch = static_cast<float*>(memory);
  kernels_->attention_block(block);
  for (int i = item.first; i < item.first + item.count; ++i) {
    const Join& join = joins_[query_joins_[i]];
    if (std::atomic_ref(unfinished_[query_joins_[i]]).fetch_sub(1, std::memory_order_acq_rel) != 1) continue;
    kernels_->attention_combine(join.parts, join.blocks, call.group(), call.shape.head_dim, join.out);
  }
}

}  // namespace kvfold
