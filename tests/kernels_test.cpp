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
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<int32_t> half_sums;
  QuantizedView view;
};

Quantized quantize(const CpuKernels& kernels, const std::vector<float>& x, int rows, int columns) {
  Quantized out;
  const int groups = (columns + 31) / 32;
  out.q.resize(static_cast<size_t>(rows) * groups * 32);
  out.scales.resize(static_cast<size_t>(rows) * groups);
  out.half_sums.resize(2 * out.scales.size());
  for (int r = 0; r < rows; ++r)
    kernels.quantize_row(
        &x[static_cast<size_t>(r) * columns], columns, &out.q[static_cast<size_t>(r) * groups * 32],
        &out.scales[static_cast<size_t>(r) * groups], &out.half_sums[static_cast<size_t>(r) * groups * 2]);
  out.view = {out.q.data(), out.scales.data(), out.half_sums.data(), groups};
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
    EXPECT_EQ(a.q, b.q) << columns;
    EXPECT_EQ(a.scales, b.scales) << columns;
    EXPECT_EQ(a.half_sums, b.half_sums) << columns;
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
  }
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
