// Paged attention and the storing of rows on CUDA give the bits of the plain CPU kernels: ragged lanes, odd
// positions, every type of page, every size of a query group, several blocks of rows.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <span>

#include "engine/random.h"
#include "engine/rope.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/kernels.h"
#include "tests/cuda/device_buffer.h"
#include "tests/cuda/tested_device.h"

namespace kvfold::testing {
namespace {

const CpuKernels& plain() { return *cpu_kernel_tables().back(); }

struct Case {
  CacheType type;
  int kv_heads;
  int group;
  int head_dim;
  int rotary_dim;
  int rows;  // slots
  bool interleaved;
  int32_t stride;  // of positions, where they jump; 0: the last is the first beyond the table of angles
};

// Lanes with holes and rows spread over pages, two tokens at the end of one sequence.
class Fixture {
 public:
  explicit Fixture(const Case& c, uint64_t seed) : c_(c), random_(seed), rope_(config(c)) {
    page_bytes_ = kv_page_bytes(c.type, c.head_dim);
    rope_.reserve(300);  // some distances are beyond the table
    int32_t position = -5;
    for (int slot = 0; slot < c.rows; ++slot) {
      if (random_.below(29) == 0) position += static_cast<int32_t>(random_.below(40)) * c.stride - 20;
      positions_.push_back(position++);
    }
    if (c.stride == 0) {
      positions_.front() = 0;
      positions_.back() = rope_.view().distances;
    }
    for (int lane = 0; lane < c.kv_heads; ++lane)
      for (int part = 0; part < 2; ++part) make_table(part == 0 ? Part::kKey : Part::kValue);
    // K and V of a lane hold the same slots: both were made from the same holes.
    q_ = gaussians(static_cast<size_t>(2) * c.kv_heads * c.group * c.head_dim);
  }

  void run() {
    const DeviceBuffer<std::byte> arena(arena_);
    std::vector<cuda::DeviceSpan> spans;
    std::vector<cuda::DeviceTable> tables;
    for (const std::vector<KvSpan>& table : tables_) {
      tables.push_back({static_cast<int32_t>(spans.size()), static_cast<int32_t>(table.size())});
      int row = 0;
      for (const KvSpan& s : table) {
        spans.push_back({s.page, s.slot, row, s.first, s.count});
        row += s.count;
      }
    }
    const int last = c_.rows - 1;
    const DeviceBuffer<cuda::DeviceToken> tokens(
        std::vector<cuda::DeviceToken>{{0, last - 1, positions_[static_cast<size_t>(last) - 1], 0},
                                       {0, last, positions_[static_cast<size_t>(last)], 0}});
    const DeviceBuffer<cuda::DeviceSpan> device_spans(spans);
    const DeviceBuffer<cuda::DeviceTable> device_tables(tables);
    const DeviceBuffer<int32_t> positions(positions_);
    const DeviceBuffer<int32_t> begin(std::vector<int32_t>{0});
    const cuda::DeviceBatch batch{tokens.get(), device_tables.get(), device_spans.get(), positions.get(),
                                  begin.get()};
    const cuda::KvShape shape{
        {arena.get(), page_bytes_, c_.type, c_.head_dim}, c_.kv_heads, c_.kv_heads, c_.group};
    check_attention(batch, shape);
    check_store(batch, shape, arena);
  }

 private:
  static ModelConfig config(const Case& c) {
    ModelConfig config;
    config.head_dim = c.head_dim;
    config.rotary_dim = c.rotary_dim;
    config.rope_base = 10000;
    config.rope_pairing = c.interleaved ? RopePairing::kInterleaved : RopePairing::kHalfSplit;
    return config;
  }
  std::vector<float> gaussians(size_t count) {
    std::vector<float> out(count);
    for (float& x : out) x = static_cast<float>(random_.gaussian());
    return out;
  }

  void make_table(Part part) {
    if (part == Part::kKey) {
      held_.clear();
      for (int slot = 0; slot < c_.rows; ++slot)
        if (slot + 2 >= c_.rows || random_.below(12) != 0) held_.push_back(slot);
    }
    std::vector<KvSpan> table;
    for (size_t i = 0; i < held_.size();) {
      const auto first = static_cast<uint16_t>(random_.below(4) == 0 ? random_.below(kPageRows) : 0);
      const auto page = static_cast<uint32_t>(arena_.size() / page_bytes_);
      arena_.resize(arena_.size() + page_bytes_);
      uint16_t count = 0;
      while (i + count < held_.size() && first + count < kPageRows && held_[i + count] == held_[i] + count)
        ++count;
      for (int r = 0; r < count; ++r)
        kv_store_row(c_.type, part, c_.head_dim, &arena_[page * page_bytes_], first + r,
                     gaussians(static_cast<size_t>(c_.head_dim)).data());
      table.push_back({page, first, count, held_[i]});
      i += count;
    }
    tables_.push_back(std::move(table));
  }

  void check_attention(const cuda::DeviceBatch& batch, const cuda::KvShape& shape) {
    const RopeView view = rope_.view();
    const auto pairs = static_cast<size_t>(view.pairs);
    const auto copy = [](const auto* from, size_t count) { return std::vector(from, from + count); };
    const DeviceBuffer<float> key_cos(copy(view.key_cos, pairs * kPageRows));
    const DeviceBuffer<float> key_sin(copy(view.key_sin, pairs * kPageRows));
    const DeviceBuffer<float> query_cos(copy(view.query_cos, pairs * view.distances));
    const DeviceBuffer<float> query_sin(copy(view.query_sin, pairs * view.distances));
    const DeviceBuffer<double> frequencies(copy(view.frequencies, pairs));
    const cuda::DeviceRope rope{key_cos.get(),     key_sin.get(),  query_cos.get(), query_sin.get(),
                                frequencies.get(), view.distances, view.pairs,      view.interleaved};
    const int heads = c_.kv_heads * c_.group;
    const int blocks = (c_.rows + kAttentionBlock - 1) / kAttentionBlock + 1;  // one more than any needs
    const DeviceBuffer<float> q(q_);
    const DeviceBuffer<float> out(q_.size());
    const DeviceBuffer<float> scratch(cuda::attention_scratch_floats(2, blocks, heads, c_.head_dim));
    const size_t partials = static_cast<size_t>(2) * blocks * heads;
    const float scale = 1.0F / std::sqrt(static_cast<float>(c_.head_dim));
    cuda::attention(batch, shape, rope, 0, 0, 2, blocks, scale, q.get(),
                    {scratch.get(), scratch.get() + partials, scratch.get() + 2 * partials}, out.get(),
                    nullptr);
    const std::vector<float> found = out.read();
    for (int token = 0; token < 2; ++token)
      for (int head = 0; head < c_.kv_heads; ++head) {
        const size_t at = (static_cast<size_t>(token) * heads + head * c_.group) * c_.head_dim;
        const std::vector<float> expected = attend(view, token, head, scale, &q_[at]);
        for (size_t i = 0; i < expected.size(); ++i)
          ASSERT_EQ(found[at + i], expected[i]) << "token " << token << " head " << head << " element " << i;
      }
  }

  static SpanRange behind(const std::vector<KvSpan>& spans, int rows) {
    const KvSpan* span = spans.data();
    while (rows >= span->count) rows -= span++->count;
    return {span, rows};
  }

  std::vector<float> attend(const RopeView& rope, int token, int head, float scale, const float* queries) {
    const std::vector<KvSpan>& keys = tables_[2 * static_cast<size_t>(head)];
    const std::vector<KvSpan>& values = tables_[2 * static_cast<size_t>(head) + 1];
    int rows = token - 1;  // the first token does not see the second
    for (const KvSpan& s : keys) rows += s.count;
    const int blocks = (rows + kAttentionBlock - 1) / kAttentionBlock;
    const size_t partials = static_cast<size_t>(blocks) * c_.group;
    std::vector<float> largest(partials);
    std::vector<float> sums(partials);
    std::vector<float> parts(partials * c_.head_dim);
    for (int b = 0; b < blocks; ++b) {
      const size_t at = static_cast<size_t>(b) * c_.group;
      const int begin = b * kAttentionBlock;
      const int count = std::min(kAttentionBlock, rows - begin);
      const AttentionQuery query{queries,
                                 positions_[static_cast<size_t>(c_.rows) - 2 + static_cast<size_t>(token)],
                                 count,
                                 {&largest[at], &sums[at], &parts[at * c_.head_dim]}};
      std::vector<float> memory(attention_scratch(c_.head_dim) + 16);
      void* scratch = memory.data();
      size_t space = memory.size() * sizeof(float);
      std::align(64, space - 60, scratch, space);
      AttentionBlock block{};
      block.pages = {arena_.data(), page_bytes_, c_.type, c_.head_dim};
      block.keys = behind(keys, begin);
      block.values = behind(values, begin);
      block.positions = positions_.data();
      block.rope = rope;
      block.heads = c_.group;
      block.scale = scale;
      block.rows = count;
      block.queries = std::span(&query, 1);
      block.scratch = static_cast<float*>(scratch);
      plain().attention_block(block);
    }
    std::vector<float> out(static_cast<size_t>(c_.group) * c_.head_dim);
    plain().attention_combine({largest.data(), sums.data(), parts.data()}, blocks, c_.group, c_.head_dim,
                              out.data());
    return out;
  }

  void check_store(const cuda::DeviceBatch& batch, const cuda::KvShape& shape,
                   const DeviceBuffer<std::byte>& arena) {
    const size_t row = static_cast<size_t>(c_.kv_heads) * c_.head_dim;
    const std::vector<float> k = gaussians(2 * row);
    const std::vector<float> v = gaussians(2 * row);
    const DeviceBuffer<float> device_k(k);
    const DeviceBuffer<float> device_v(v);
    cuda::store_kv(batch, shape, 0, 2, device_k.get(), device_v.get(), nullptr);
    std::vector<std::byte> expected = arena_;
    for (size_t table = 0; table < tables_.size(); ++table)
      for (int token = 0; token < 2; ++token)
        for (const KvSpan& s : tables_[table]) {
          const int slot = c_.rows - 2 + token;
          if (slot < s.slot || slot >= s.slot + s.count) continue;
          kv_store_row(c_.type, table % 2 == 0 ? Part::kKey : Part::kValue, c_.head_dim,
                       &expected[s.page * page_bytes_], s.first + slot - s.slot,
                       (table % 2 == 0 ? k : v).data() + token * row + table / 2 * c_.head_dim);
        }
    ASSERT_EQ(arena.read(), expected);
  }

  Case c_;
  Random random_;
  RopeTables rope_;
  size_t page_bytes_;
  std::vector<std::byte> arena_;
  std::vector<int32_t> positions_;
  std::vector<int> held_;
  std::vector<std::vector<KvSpan>> tables_;  // K, V of each lane in turn
  std::vector<float> q_;
};

class Attention : public ::testing::TestWithParam<ThreadOrder> {};

TEST_P(Attention, GivesTheBitsOfPlain) {
  use_order(GetParam());
  const std::vector<Case> cases = {
      {CacheType::kF16, 3, 3, 64, 64, 300, true, 1},     {CacheType::kF32, 2, 7, 64, 64, 70, false, 1},
      {CacheType::kQ8, 1, 8, 64, 64, 270, false, 2000},  {CacheType::kF16, 2, 2, 48, 48, 40, false, 1},
      {CacheType::kQ8, 1, 12, 128, 128, 33, true, 1},    {CacheType::kF32, 1, 5, 20, 12, 20, false, 1},
      {CacheType::kF16, 1, 1, 128, 128, 2, true, 70000}, {CacheType::kF16, 1, 4, 17, 16, 5, false, 1},
      {CacheType::kF32, 1, 1, 32, 32, 2, false, 0},      {CacheType::kQ8, 1, 2, 24, 24, 40, false, 1},
      {CacheType::kF16, 1, 2, 32, 32, 90, false, -3},    {CacheType::kF32, 1, 1, 32, 16, 90, true, -5000},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    Fixture(cases[i], i + 1).run();
    ASSERT_FALSE(HasFatalFailure()) << "case " << i;
  }
  EXPECT_TRUE(no_reports());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

INSTANTIATE_TEST_SUITE_P(Orders, Attention, ::testing::ValuesIn(thread_orders()), order_name);

}  // namespace
}  // namespace kvfold::testing
