// The products of training against their definition, bit for bit: fused multiply-adds over the depth in
// order.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/random.h"
#include "engine/train/gemm.h"
#include "kernels/formats/formats.h"

namespace kvfold::testing {
namespace {

std::vector<float> gaussians(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = static_cast<float>(random.gaussian());
  return out;
}

// c is [rows, columns], dense.
std::vector<float> by_definition(const Strided& a, const Strided& b, const GemmSize& size,
                                 std::vector<float> c) {
  for (int64_t r = 0; r < size.rows; ++r)
    for (int64_t j = 0; j < size.columns; ++j)
      for (int64_t k = 0; k < size.depth; ++k)
        c[r * size.columns + j] =
            std::fma(a.data[r * a.row_stride + k * a.column_stride],
                     b.data[k * b.row_stride + j * b.column_stride], c[r * size.columns + j]);
  return c;
}

constexpr GemmSize kSizes[] = {{1, 1, 1},    {12, 32, 256}, {13, 33, 257}, {5, 70, 600},
                               {40, 12, 64}, {25, 31, 3},   {2, 200, 512}, {64, 96, 31}};

TEST(Gemm, IsItsDefinitionWithEveryKernelTable) {
  for (const CpuKernels* kernels : cpu_kernel_tables()) {
    if (!kernels->supported()) continue;
    ThreadPool pool(3);
    Gemm gemm(pool, *kernels);
    GemmScratch scratch;
    for (const GemmSize& size : kSizes)
      for (const bool transposed : {false, true})
        for (const bool accumulate : {false, true}) {
          const std::vector<float> a = gaussians(size.rows * size.depth, 1);
          const std::vector<float> b = gaussians(size.columns * size.depth, 2);
          const std::vector<float> before = gaussians(size.rows * size.columns, 3);
          const Strided left =
              transposed ? Strided{a.data(), size.rows}.transposed() : Strided{a.data(), size.depth};
          const Strided right =
              transposed ? Strided{b.data(), size.depth}.transposed() : Strided{b.data(), size.columns};
          const std::vector<float> expected =
              by_definition(left, right, size, accumulate ? before : std::vector<float>(before.size(), 0.0F));
          std::vector<float> c = before;
          gemm.multiply(left, right, size, {c.data(), size.columns, accumulate});
          ASSERT_EQ(c, expected) << kernels->name << ' ' << size.rows << ' ' << size.columns << ' '
                                 << size.depth;
          c = before;
          multiply_alone(*kernels, scratch, left, right, size, {c.data(), size.columns, accumulate});
          ASSERT_EQ(c, expected) << kernels->name << " alone";
        }
  }
}

TEST(Gemm, DecodesWeightsForwardAndBack) {
  ThreadPool pool(2);
  Gemm gemm(pool, *select_cpu_kernels());
  for (const FormatInfo& format : weight_formats()) {
    const int64_t columns = format.block_elements > 32 ? 512 : 288;
    const int64_t outputs = 77;
    const std::vector<float> raw = gaussians(outputs * columns, 4);
    std::vector<std::byte> bytes(raw.size() / format.block_elements * format.block_bytes);
    std::vector<float> decoded(raw.size());
    format.encode(raw.data(), bytes.data(), raw.size());
    format.decode(bytes.data(), decoded.data(), raw.size());
    const MatrixView w = {format.type, outputs, columns, bytes.data()};
    const int64_t rows = 14;
    const std::vector<float> x = gaussians(rows * columns, 5);
    std::vector<float> y(static_cast<size_t>(rows * outputs));
    gemm.forward(x.data(), rows, w, {y.data(), outputs});
    EXPECT_EQ(y, by_definition({x.data(), columns}, Strided{decoded.data(), columns}.transposed(),
                               {rows, outputs, columns}, std::vector<float>(y.size(), 0.0F)))
        << format.name;
    std::vector<float> back = x;
    gemm.backward(y.data(), rows, w, {back.data(), columns, true});
    EXPECT_EQ(back,
              by_definition({y.data(), outputs}, {decoded.data(), columns}, {rows, columns, outputs}, x))
        << format.name;
  }
}

}  // namespace
}  // namespace kvfold::testing
