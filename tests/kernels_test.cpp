// Every table of CPU kernels computes the bits of the plain one; the plain one agrees with sums in f64.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "engine/random.h"
#include "kernels/cpu/cpu.h"
#include "kernels/formats/formats.h"

namespace kvfold::testing {
namespace {

const CpuKernels& plain() { return *cpu_kernel_tables().back(); }

std::vector<float> gaussians(size_t count, uint64_t seed, double scale = 1) {
  Random random(seed);
  std::vector<float> out(count);
  for (float& x : out) x = static_cast<float>(scale * random.gaussian());
  return out;
}

// A weight matrix in a format's blocks, encoded from gaussians.
struct TestWeight {
  std::vector<std::byte> bytes;
  MatrixView view;
  std::vector<float> values;  // decoded
};

TestWeight make_weight(WeightType type, int64_t rows, int64_t columns, uint64_t seed) {
  const FormatInfo& format = format_info(type);
  TestWeight w;
  const std::vector<float> raw = gaussians(static_cast<size_t>(rows * columns), seed, 0.05);
  w.bytes.resize(static_cast<size_t>(rows * columns) / format.block_elements * format.block_bytes);
  format.encode(raw.data(), w.bytes.data(), raw.size());
  w.values.resize(raw.size());
  format.decode(w.bytes.data(), w.values.data(), raw.size());
  w.view = {type, rows, columns, w.bytes.data()};
  return w;
}

struct AlignedFree {
  void operator()(std::byte* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<std::byte, AlignedFree>;

AlignedBytes aligned(size_t bytes) {
  return AlignedBytes(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)));
}

struct Quantized {
  std::vector<ActivationGroup> panels;
  QuantizedView view;
};

Quantized quantize(const CpuKernels& kernels, const std::vector<float>& x, int rows, int columns) {
  Quantized out;
  const int groups = (columns + 31) / 32;
  out.panels.resize(static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows) * groups);
  std::memset(static_cast<void*>(out.panels.data()), 0, out.panels.size() * sizeof(ActivationGroup));
  kernels.quantize(x.data(), rows, columns, out.panels.data());
  out.view = {out.panels.data(), groups};
  return out;
}

std::vector<float> matmul_q8(const CpuKernels& kernels, const TestWeight& w, const Quantized& x, int rows) {
  std::vector<float> y(static_cast<size_t>(rows) * w.view.rows, NAN);
  MatrixView view = w.view;
  AlignedBytes packed;
  const int64_t units = (w.view.rows + kernels.row_unit - 1) / kernels.row_unit;
  if (kernels.pack != nullptr) {
    packed = aligned(kernels.packed_bytes(w.view));
    kernels.pack(w.view, 0, units, packed.get());
    view.data = packed.get();
  }
  // In two pieces, as two threads would.
  kernels.matmul_q8(view, 0, units / 2, x.view, rows, y.data(), w.view.rows);
  kernels.matmul_q8(view, units / 2, units, x.view, rows, y.data(), w.view.rows);
  return y;
}

std::string table_name(const ::testing::TestParamInfo<const CpuKernels*>& kernels) {
  std::string name = kernels.param->name;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name + "_" + std::to_string(kernels.index);
}

class Table : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  void SetUp() override {
    if (!GetParam()->supported()) GTEST_SKIP() << "this CPU lacks it";
  }
  const CpuKernels& kernels() const { return *GetParam(); }
};

TEST_P(Table, QuantizesAsPlain) {
  for (const int columns : {32, 33, 100, 576, 1536}) {
    std::vector<float> x = gaussians(static_cast<size_t>(3) * columns, 4);
    x[0] = 0;
    std::fill_n(x.begin() + columns, std::min(columns, 32), 0.0F);  // a group of zeros
    const Quantized a = quantize(plain(), x, 3, columns);
    const Quantized b = quantize(kernels(), x, 3, columns);
    for (size_t g = 0; g < a.panels.size(); ++g)
      // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): bits are compared, and there is no padding
      ASSERT_EQ(std::memcmp(&a.panels[g], &b.panels[g], sizeof(ActivationGroup)), 0)
          << columns << ", group " << g;
  }
}

TEST_P(Table, MultipliesIntegersAsPlain) {
  for (const WeightType type : {WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0, WeightType::kQ5_1,
                                WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ5_K, WeightType::kQ6_K})
    for (const int rows : {1, 2, 5, 17, 33})
      for (const int64_t outputs : {1, 15, 16, 40, 96}) {
        const int columns = rows % 2 == 0 ? 256 : 768;
        const TestWeight w = make_weight(type, outputs, columns, 9);
        const Quantized x =
            quantize(plain(), gaussians(static_cast<size_t>(rows) * columns, 5), rows, columns);
        const std::vector<float> expected = matmul_q8(plain(), w, x, rows);
        ASSERT_EQ(matmul_q8(kernels(), w, x, rows), expected)
            << format_info(type).name << ", " << rows << " rows, " << outputs << " outputs";
      }
}

// Where sums of 16 bits would overflow first: all integers of the weights, and of the activations, at their
// limits.
TEST_P(Table, MultipliesTheLargestIntegersAsPlain) {
  struct Halves {
    WeightType type;
    std::vector<int> offsets;  // of f16 numbers in a block, which stay 1
  };
  const int64_t q6_scale = format_info(WeightType::kQ6_K).block_bytes - 2;
  for (const Halves& format :
       {Halves{WeightType::kQ4_0, {0}}, Halves{WeightType::kQ4_1, {0, 2}}, Halves{WeightType::kQ5_0, {0}},
        Halves{WeightType::kQ5_1, {0, 2}}, Halves{WeightType::kQ8_0, {0}}, Halves{WeightType::kQ4_K, {0, 2}},
        Halves{WeightType::kQ5_K, {0, 2}}, Halves{WeightType::kQ6_K, {static_cast<int>(q6_scale)}}})
    for (const int fill : {0x00, 0x7F, 0x80, 0xFF})
      for (const float sign : {1.0F, -1.0F}) {
        TestWeight w = make_weight(format.type, 40, 512, 9);
        std::memset(w.bytes.data(), fill, w.bytes.size());
        constexpr uint16_t kOne = 0x3C00;
        for (size_t block = 0; block < w.bytes.size(); block += format_info(format.type).block_bytes)
          for (const int offset : format.offsets) std::memcpy(&w.bytes[block + offset], &kOne, sizeof kOne);
        for (const int rows : {1, 5}) {
          const Quantized x =
              quantize(plain(), std::vector<float>(static_cast<size_t>(rows) * 512, sign), rows, 512);
          ASSERT_EQ(matmul_q8(kernels(), w, x, rows), matmul_q8(plain(), w, x, rows))
              << format_info(format.type).name << ", bytes " << fill << ", " << rows << " rows of " << sign;
        }
      }
}

TEST_P(Table, MultipliesFloatsAsPlain) {
  for (const WeightType type :
       {WeightType::kF32, WeightType::kF16, WeightType::kBF16, WeightType::kQ4_1, WeightType::kQ6_K}) {
    const TestWeight w = make_weight(type, 21, 512, 9);
    const std::vector<float> x = gaussians(size_t{3} * 512, 5);
    std::vector<float> scratch(512);
    std::vector<float> a(size_t{63});
    std::vector<float> b(a.size());
    plain().matmul_f32(w.view, 0, 21, x.data(), 3, a.data(), 21, scratch.data());
    kernels().matmul_f32(w.view, 0, 9, x.data(), 3, b.data(), 21, scratch.data());
    kernels().matmul_f32(w.view, 9, 21, x.data(), 3, b.data(), 21, scratch.data());
    ASSERT_EQ(a, b) << format_info(type).name;
  }
}

TEST_P(Table, NormsAndActivatesAsPlain) {
  for (const int n : {1, 16, 31, 576, 900}) {
    const std::vector<float> x = gaussians(static_cast<size_t>(n), 1, 3);
    const std::vector<float> w = gaussians(static_cast<size_t>(n), 2);
    std::vector<float> a(x.size());
    std::vector<float> b(x.size());
    plain().rms_norm(x.data(), w.data(), n, 1e-5F, a.data());
    kernels().rms_norm(x.data(), w.data(), n, 1e-5F, b.data());
    EXPECT_EQ(a, b) << n;
    plain().swiglu(x.data(), w.data(), n, a.data());
    kernels().swiglu(x.data(), w.data(), n, b.data());
    EXPECT_EQ(a, b) << n;
    const std::vector<float> gradient = gaussians(static_cast<size_t>(n), 3);
    std::vector<float> gates[] = {x, x};
    std::vector<float> ups[] = {w, w};
    plain().swiglu_gradient(gradient.data(), n, gates[0].data(), ups[0].data());
    kernels().swiglu_gradient(gradient.data(), n, gates[1].data(), ups[1].data());
    EXPECT_EQ(gates[0], gates[1]) << n;
    EXPECT_EQ(ups[0], ups[1]) << n;
    a = b = x;
    EXPECT_EQ(plain().softmax(a.data(), n), kernels().softmax(b.data(), n)) << n;
    EXPECT_EQ(a, b) << n;
  }
}

TEST_P(Table, StoresRowsAsPlain) {
  for (const CacheType type : {CacheType::kF16, CacheType::kF32, CacheType::kQ8})
    for (const Part part : {Part::kKey, Part::kValue})
      for (const int head_dim : {16, 20, 64, 80}) {
        const size_t bytes = kv_page_bytes(type, head_dim);
        std::vector<std::byte> a(bytes), b(bytes);
        for (int row = 0; row < kPageRows; row += 5) {
          const std::vector<float> x = gaussians(static_cast<size_t>(head_dim), static_cast<uint64_t>(row));
          kv_store_row(type, part, head_dim, a.data(), row, x.data());
          kernels().store_row(type, part, head_dim, b.data(), row, x.data());
        }
        ASSERT_EQ(a, b) << static_cast<int>(type) << ", head_dim " << head_dim;
      }
}

// A lane of gaussian rows in pages, cut into spans of all lengths, at positions that run on, jump and repeat.
struct TestLane {
  static constexpr int kPages = 12;
  std::vector<std::byte> arena;
  KvPagesView pages;
  std::vector<KvSpan> keys, values;
  std::vector<int32_t> positions;
  std::vector<float> tables[4];
  std::vector<double> frequencies;
  RopeView rope;

  TestLane(CacheType type, int head_dim, int rotary_dim, bool interleaved) {
    const size_t page_bytes = kv_page_bytes(type, head_dim);
    arena.resize(2 * kPages * page_bytes);
    pages = {arena.data(), page_bytes, type, head_dim};
    Random random(7);
    for (int page = 0; page < 2 * kPages; ++page)
      for (int row = 0; row < kPageRows; ++row)
        kv_store_row(type, page < kPages ? Part::kKey : Part::kValue, head_dim,
                     pages.page(static_cast<uint32_t>(page)), row,
                     gaussians(static_cast<size_t>(head_dim), random.next()).data());
    int slot = 0;
    for (uint32_t page = 0; page < kPages; ++page) {
      // A third of the pages whole, a third from the middle on, a third split in two.
      const auto first = static_cast<uint16_t>(page % 3 == 1 ? 3 + page : 0);
      const auto count = static_cast<uint16_t>(kPageRows - first);
      keys.push_back({page, first, count, slot});
      if (page % 3 == 2) {
        values.push_back({kPages + page, first, 9, slot});
        values.push_back({kPages + page, 9, static_cast<uint16_t>(count - 9), slot + 9});
      } else {
        values.push_back({kPages + page, first, count, slot});
      }
      slot += count;
    }
    for (int i = 0; i < slot; ++i)
      positions.push_back(i < 90 ? i + 5 : i < 130 ? 3 * i : i < 150 ? 40 : i - 200);
    const int pairs = rotary_dim / 2;
    constexpr int kDistances = 100;  // fewer than there are: the rest is computed
    for (int i = 0; i < pairs; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / rotary_dim));
    for (const double f : frequencies)
      for (int j = 0; j < kPageRows; ++j) {
        tables[0].push_back(static_cast<float>(std::cos(j * f)));
        tables[1].push_back(static_cast<float>(std::sin(j * f)));
      }
    for (int d = 0; d < kDistances; ++d)
      for (const double f : frequencies) {
        tables[2].push_back(static_cast<float>(std::cos(d * f)));
        tables[3].push_back(static_cast<float>(std::sin(d * f)));
      }
    rope = {tables[0].data(),
            tables[1].data(),
            tables[2].data(),
            tables[3].data(),
            frequencies.data(),
            kDistances,
            pairs,
            interleaved};
  }
};

// Largest scores, sums and values of `tokens` queries, each of which sees a few rows fewer than the block
// has.
std::vector<float> attend(const CpuKernels& kernels, const TestLane& lane, int skip, int rows, int tokens,
                          int heads) {
  const auto head_dim = static_cast<size_t>(lane.pages.head_dim);
  const size_t vectors = static_cast<size_t>(tokens) * heads;
  const std::vector<float> q = gaussians(vectors * head_dim, 3);
  std::vector<float> out(vectors * (head_dim + 2), NAN);
  std::vector<AttentionQuery> queries;
  for (int i = 0; i < tokens; ++i) {
    const size_t at = static_cast<size_t>(i) * heads;
    queries.push_back({&q[at * head_dim],
                       190 + 7 * (i / 2),
                       std::max(1, rows - (i * 5) % 21),
                       {&out[at], &out[vectors + at], &out[2 * vectors + at * head_dim]}});
  }
  const AlignedBytes scratch = aligned(attention_scratch(lane.pages.head_dim) * sizeof(float));
  kernels.attention_block({lane.pages,
                           {lane.keys.data(), skip},
                           {lane.values.data(), skip},
                           lane.positions.data(),
                           lane.rope,
                           heads,
                           0.125F,
                           rows,
                           queries,
                           reinterpret_cast<float*>(scratch.get())});
  return out;
}

TEST_P(Table, AttendsAsPlain) {
  struct Shape {
    int head_dim, rotary_dim, heads;
    bool interleaved;
  };
  for (const CacheType type : {CacheType::kF16, CacheType::kF32, CacheType::kQ8})
    for (const Shape& s : {Shape{64, 64, 3, true}, Shape{64, 64, 7, false}, Shape{20, 12, 1, false},
                           Shape{48, 48, 2, true}, Shape{288, 64, 2, false}}) {
      const TestLane lane(type, s.head_dim, s.rotary_dim, s.interleaved);
      for (const int tokens : {1, 2, 9})
        for (const int rows : {1, 17, 40, kAttentionBlock}) {
          const std::vector<float> expected = attend(plain(), lane, 3, rows, tokens, s.heads);
          ASSERT_EQ(attend(kernels(), lane, 3, rows, tokens, s.heads), expected)
              << "type " << static_cast<int>(type) << ", head_dim " << s.head_dim << ", " << tokens
              << " tokens, " << rows << " rows";
          for (const float x : expected) ASSERT_TRUE(std::isfinite(x));
        }
    }
}

TEST_P(Table, CombinesAsPlain) {
  constexpr int kHeads = 3, kBlocks = 4, kHeadDim = 20;
  std::vector<float> largest = gaussians(size_t{kHeads} * kBlocks, 1, 4);
  std::vector<float> sums = gaussians(largest.size(), 2);
  for (float& sum : sums) sum = 1 + std::abs(sum);
  std::vector<float> values = gaussians(largest.size() * kHeadDim, 3);
  const AttentionPartial parts{largest.data(), sums.data(), values.data()};
  std::vector<float> a(size_t{kHeads} * kHeadDim), b(a.size());
  plain().attention_combine(parts, kBlocks, kHeads, kHeadDim, a.data());
  kernels().attention_combine(parts, kBlocks, kHeads, kHeadDim, b.data());
  EXPECT_EQ(a, b);
}

INSTANTIATE_TEST_SUITE_P(Cpu, Table,
                         ::testing::ValuesIn(cpu_kernel_tables().begin(), cpu_kernel_tables().end()),
                         table_name);

TEST(Plain, IntegerProductsAreNearTheRealOnes) {
  constexpr int kColumns = 512;
  for (const WeightType type :
       {WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K}) {
    const TestWeight w = make_weight(type, 24, kColumns, 1);
    const std::vector<float> x = gaussians(kColumns, 2);
    const std::vector<float> y = matmul_q8(plain(), w, quantize(plain(), x, 1, kColumns), 1);
    for (int r = 0; r < 24; ++r) {
      double sum = 0;
      double squares = 0;
      for (int c = 0; c < kColumns; ++c) {
        const double product = static_cast<double>(w.values[static_cast<size_t>(r) * kColumns + c]) * x[c];
        sum += product;
        squares += product * product;
      }
      // int8 activations lose 0.4% of each product; observed: up to 0.015 of the root of the squares' sum.
      EXPECT_NEAR(y[r], sum, 0.03 * std::sqrt(squares)) << format_info(type).name;
    }
  }
}

TEST(Plain, SwigluAndNormAreTheFormulas) {
  const std::vector<float> x = gaussians(300, 1, 4);
  const std::vector<float> w = gaussians(300, 2);
  std::vector<float> y(300);
  plain().swiglu(x.data(), w.data(), 300, y.data());
  for (int i = 0; i < 300; ++i) {
    const double expected = x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * w[i];
    EXPECT_NEAR(y[i], expected, 4e-7 * std::abs(expected) + 1e-12);
  }
  plain().rms_norm(x.data(), w.data(), 300, 1e-5F, y.data());
  double squares = 0;
  for (const float v : x) squares += static_cast<double>(v) * v;
  for (int i = 0; i < 300; ++i) {
    const double expected = x[i] / std::sqrt(squares / 300 + 1e-5) * w[i];
    EXPECT_NEAR(y[i], expected, 4e-7 * std::abs(expected) + 1e-12);
  }
}

}  // namespace
}  // namespace kvfold::testing
