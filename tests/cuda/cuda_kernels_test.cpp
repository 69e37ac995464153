// The CUDA kernels give the bits of the plain CPU kernels, for every format, number of rows and shape, in
// three orders of threads. KVFOLD_CUDA_FULL=1 runs the whole table of shapes; else a part of it.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>

#include "engine/likeliest.h"
#include "engine/random.h"
#include "engine/rope.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/kernels.h"
#include "kernels/formats/formats.h"
#include "tests/cuda/device_buffer.h"
#include "tests/cuda/tested_device.h"

namespace kvfold::testing {
namespace {

constexpr std::array kQuantized = {WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0,
                                   WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K,
                                   WeightType::kQ5_K, WeightType::kQ6_K};

const CpuKernels& plain() { return *cpu_kernel_tables().back(); }

std::vector<float> gaussians(size_t count, uint64_t seed, double scale = 1) {
  Random random(seed);
  std::vector<float> out(count);
  for (float& x : out) x = static_cast<float>(scale * random.gaussian());
  return out;
}

// A weight in a file's blocks, and packed on the device.
struct TestWeight {
  TestWeight(WeightType type, int64_t rows, int64_t columns, uint64_t seed) {
    const FormatInfo& format = format_info(type);
    const std::vector<float> raw = gaussians(static_cast<size_t>(rows * columns), seed, 0.05);
    blocks.resize(raw.size() / format.block_elements * format.block_bytes);
    format.encode(raw.data(), blocks.data(), raw.size());
    view = {type, rows, columns, blocks.data()};
    std::vector<std::byte> packed(cuda::packed_layout(type, rows, columns).bytes);
    const int64_t tiles = cuda::packed_tiles(rows);
    cuda::pack(view, 0, tiles / 2, packed.data());
    cuda::pack(view, tiles / 2, tiles, packed.data());
    memory = std::make_unique<DeviceBuffer<std::byte>>(packed);
    device = cuda::packed_view(type, rows, columns, memory->get());
  }
  std::vector<std::byte> blocks;
  MatrixView view;
  std::unique_ptr<DeviceBuffer<std::byte>> memory;
  cuda::PackedView device;
};

// Activations quantised by the plain kernels, here and on the device.
struct TestRows {
  TestRows(const std::vector<float>& x, int rows, int columns) : groups((columns + 31) / 32) {
    panels.resize(static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows) * groups);
    plain().quantize(x.data(), rows, columns, panels.data());
    for (int r = 0; r < rows; ++r) {
      const ActivationGroup* panel = &panels[static_cast<size_t>(r / kPanelRows) * groups];
      for (int g = 0; g < groups; ++g) {
        const ActivationGroup::Row& row = panel[g].rows[r % kPanelRows];
        q.insert(q.end(), row.q, row.q + kGroup);
        scales.push_back(row.scale);
      }
    }
    device_q = std::make_unique<DeviceBuffer<int8_t>>(q);
    device_scales = std::make_unique<DeviceBuffer<float>>(scales);
  }
  QuantizedView host() const { return {panels.data(), groups}; }
  cuda::QuantizedRows device() const { return {device_q->get(), device_scales->get(), groups}; }
  int groups;
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<ActivationGroup> panels;
  std::unique_ptr<DeviceBuffer<int8_t>> device_q;
  std::unique_ptr<DeviceBuffer<float>> device_scales;
};

// What a product with bias and accumulation must leave: out + (x w + bias).
std::vector<float> finish(std::vector<float> y, const std::vector<float>& bias,
                          const std::vector<float>& out) {
  for (size_t i = 0; i < y.size(); ++i) y[i] = out[i] + (y[i] + bias[i % bias.size()]);
  return y;
}

struct Shape {
  int64_t outputs;
  int64_t columns;
};
std::vector<Shape> shapes() {
  std::vector<Shape> out = {{1, 256}, {kSanitized ? 9 : 72, kSanitized ? 512 : 768}};
  // Beyond one chunk of activations in shared memory; and the models' own.
  if (full())
    for (const Shape shape : {Shape{65, 4352}, Shape{64, 4864}, Shape{576, 1536}, Shape{256, 2048},
                              Shape{128, 5632}, Shape{40, 512}})
      out.push_back(shape);
  return out;
}
// Columns that 256 does not divide, for the formats that can have them.
std::vector<Shape> shapes_of(WeightType type) {
  std::vector<Shape> out = shapes();
  if (format_info(type).block_elements == 256) return out;
  out.push_back({13, 32});
  out.push_back({20, 576});
  if (full())
    for (const Shape shape : {Shape{192, 576}, Shape{320, 960}, Shape{128, 896}}) out.push_back(shape);
  return out;
}

class Kernels : public ::testing::TestWithParam<ThreadOrder> {
 protected:
  void SetUp() override { use_order(GetParam()); }
  void TearDown() override {
    EXPECT_TRUE(no_reports());
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
};

void check_products(WeightType type, const Shape& shape, const std::vector<int>& counts, bool tile) {
  const TestWeight w(type, shape.outputs, shape.columns, 9);
  for (const int rows : counts) {
    const auto columns = static_cast<int>(shape.columns);
    const TestRows x(gaussians(static_cast<size_t>(rows) * columns, 5), rows, columns);
    std::vector<float> y(static_cast<size_t>(rows) * shape.outputs);
    plain().matmul_q8(w.view, 0, shape.outputs, x.host(), rows, y.data(), shape.outputs);
    const std::vector<float> bias = gaussians(static_cast<size_t>(shape.outputs), 3);
    const std::vector<float> before = gaussians(y.size(), 4);
    const DeviceBuffer<float> device_bias(bias);
    const DeviceBuffer<float> out(before);
    const DeviceBuffer<float> bare(y.size());
    const std::array products = {cuda::Product{w.device, device_bias.get(), out.get(), true},
                                 cuda::Product{w.device, nullptr, bare.get(), false}};
    if (tile) {
      for (const cuda::Product& product : products) cuda::mat_tile(product, x.device(), rows, nullptr);
    } else {
      cuda::mat_vec(products.data(), 2, x.device(), rows, nullptr);
    }
    const auto what = [&] {
      return std::string(format_info(type).name) + ", " + std::to_string(rows) + " rows, " +
             std::to_string(shape.outputs) + " x " + std::to_string(shape.columns);
    };
    ASSERT_EQ(bare.read(), y) << what();
    ASSERT_EQ(out.read(), finish(y, bias, before)) << what();
  }
}

TEST_P(Kernels, MatVecGivesTheBitsOfPlain) {
  const std::vector<int> some = {1, 3, 7, 16};
  const std::vector<int> all = {1, 2, 3, 4, 5, 8, 9, 15, 16};
  for (const WeightType type : kQuantized)
    for (const Shape& shape : shapes_of(type)) check_products(type, shape, full() ? all : some, false);
}

// More groups than shared memory holds at once, for each number of rows that has a kernel of its own.
TEST_P(Kernels, MatVecFillsSharedMemoryAgain) {
  const std::array<std::pair<int, int64_t>, 4> cases = {{{1, 4352}, {3, 2304}, {7, 2304}, {16, 1280}}};
  for (const WeightType type : {WeightType::kQ4_0, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K})
    for (const auto& [rows, columns] : cases) {
      if (kSanitized && (rows == 3 || type == WeightType::kQ8_0 || type == WeightType::kQ6_K)) continue;
      check_products(type, {9, columns}, {rows}, false);
    }
}

TEST_P(Kernels, MatTileGivesTheBitsOfPlain) {
  for (const WeightType type : kQuantized)
    for (const Shape& shape : shapes_of(type))
      check_products(type, shape, full() ? std::vector<int>{1, 17, 64, 65} : std::vector<int>{17}, true);
}

// Blocks side by side, in both directions.
TEST_P(Kernels, MatTileOfSeveralBlocks) {
  for (const WeightType type : {WeightType::kQ4_1, WeightType::kQ6_K})
    check_products(type, {65, 256}, {kSanitized ? 65 : 130}, true);
}

TEST_P(Kernels, FloatProductsGiveTheBitsOfPlain) {
  for (const FormatInfo& format : weight_formats()) {
    std::vector<Shape> table = shapes_of(format.type);
    if (format.block_elements == 1) table.push_back({21, 45});
    for (const Shape& shape : table)
      for (const int rows : {1, 3, 9}) {
        const TestWeight w(format.type, shape.outputs, shape.columns, 9);
        const std::vector<float> x = gaussians(static_cast<size_t>(rows * shape.columns), 5);
        std::vector<float> scratch(static_cast<size_t>(shape.columns));
        std::vector<float> y(static_cast<size_t>(rows * shape.outputs));
        plain().matmul_f32(w.view, 0, shape.outputs, x.data(), rows, y.data(), shape.outputs, scratch.data());
        const std::vector<float> bias = gaussians(static_cast<size_t>(shape.outputs), 3);
        const std::vector<float> before = gaussians(y.size(), 4);
        const DeviceBuffer<float> device_x(x);
        const DeviceBuffer<float> device_bias(bias);
        const DeviceBuffer<float> out(before);
        cuda::mat_float({w.device, device_bias.get(), out.get(), true}, device_x.get(), rows, nullptr);
        ASSERT_EQ(out.read(), finish(y, bias, before))
            << format.name << ", " << rows << " rows, " << shape.columns;
      }
  }
}

TEST_P(Kernels, ProductsOfOthersAreFinished) {
  constexpr int kRows = 3;
  for (const int outputs : {5, 300}) {
    cuda::Product product;
    product.weight.rows = outputs;
    const std::vector<float> y = gaussians(static_cast<size_t>(kRows) * outputs, 4);
    const std::vector<float> bias = gaussians(static_cast<size_t>(outputs), 3);
    const std::vector<float> before = gaussians(y.size(), 5);
    const DeviceBuffer<float> device_y(y);
    const DeviceBuffer<float> device_bias(bias);
    const DeviceBuffer<float> bare(y.size());
    const DeviceBuffer<float> out(before);
    product.out = bare.get();
    cuda::finish_product(device_y.get(), product, kRows, nullptr);
    EXPECT_EQ(bare.read(), y);
    product.bias = device_bias.get();
    product.out = out.get();
    product.accumulate = true;
    cuda::finish_product(device_y.get(), product, kRows, nullptr);
    EXPECT_EQ(out.read(), finish(y, bias, before));
  }
}

TEST_P(Kernels, DecodesRowsAsTheFormatDoes) {
  for (const FormatInfo& format : weight_formats()) {
    const int columns = format.block_elements == 1 ? 45 : 512;
    const TestWeight w(format.type, 20, columns, 2);
    const std::vector<int32_t> ids = {19, 0, 7, 8, 7};
    std::vector<float> expected;
    for (const int32_t id : ids) {
      std::vector<float> row(static_cast<size_t>(columns));
      format.decode(
          w.view.data + static_cast<ptrdiff_t>(id) * columns / format.block_elements * format.block_bytes,
          row.data(), row.size());
      expected.insert(expected.end(), row.begin(), row.end());
    }
    const DeviceBuffer<int32_t> device_ids(ids);
    const DeviceBuffer<float> out(expected.size());
    cuda::decode_rows(w.device, device_ids.get(), 0, 5, out.get(), nullptr);
    ASSERT_EQ(out.read(), expected) << format.name;
  }
}

TEST_P(Kernels, RowsAreNormedGatedAndQuantisedAsPlain) {
  for (const int columns : {16, 33, 100, 576, 1536, 12288}) {  // the last in more than 48 KiB
    constexpr int kRows = 3;
    std::vector<float> x = gaussians(static_cast<size_t>(kRows) * columns, 4, 3);
    std::fill_n(x.begin() + columns, std::min(columns, 32), 0.0F);  // a group of zeros
    const std::vector<float> up = gaussians(x.size(), 6);
    const std::vector<float> weight = gaussians(static_cast<size_t>(columns), 7);
    std::vector<float> normed(x.size());
    std::vector<float> gated(x.size());
    for (size_t r = 0; r < kRows; ++r)
      plain().rms_norm(&x[r * columns], weight.data(), columns, 1e-5F, &normed[r * columns]);
    plain().swiglu(x.data(), up.data(), static_cast<int>(x.size()), gated.data());

    const DeviceBuffer<float> device_x(x);
    const DeviceBuffer<float> device_up(up);
    const DeviceBuffer<float> device_weight(weight);
    const DeviceBuffer<float> floats(x.size());
    cuda::norm(device_x.get(), device_weight.get(), 1e-5F, kRows, columns, floats.get(), nullptr);
    EXPECT_EQ(floats.read(), normed) << columns;
    cuda::swiglu(device_x.get(), device_up.get(), x.size(), floats.get(), nullptr);
    EXPECT_EQ(floats.read(), gated) << columns;
    // Of fewer values, those behind them stay.
    const DeviceBuffer<float> some(normed);
    cuda::swiglu(device_x.get(), device_up.get(), x.size() - 1, some.get(), nullptr);
    EXPECT_EQ(some.read().back(), normed.back()) << columns;

    const int groups = (columns + 31) / 32;
    const DeviceBuffer<int8_t> q(static_cast<size_t>(kRows) * groups * 32);
    const DeviceBuffer<float> scales(static_cast<size_t>(kRows) * groups);
    const cuda::QuantizedRows out{q.get(), scales.get(), groups};
    const auto expect_rows = [&](const std::vector<float>& from, const char* what) {
      const TestRows expected(from, kRows, columns);
      EXPECT_EQ(q.read(), expected.q) << what << columns;
      EXPECT_EQ(scales.read(), expected.scales) << what << columns;
    };
    cuda::quantize(device_x.get(), kRows, columns, out, nullptr);
    expect_rows(x, "plain ");
    cuda::norm_quantize(device_x.get(), device_weight.get(), 1e-5F, kRows, columns, out, nullptr);
    expect_rows(normed, "normed ");
    cuda::swiglu_quantize(device_x.get(), device_up.get(), kRows, columns, out, nullptr);
    expect_rows(gated, "gated ");
  }
}

// A grid is at most 65,535 blocks high; rows may be more.
TEST_P(Kernels, ManyRowsAreQuantised) {
  constexpr int kRows = 65536;
  if (!full()) GTEST_SKIP() << "16 million threads: with KVFOLD_CUDA_FULL=1";
  const DeviceBuffer<float> x(std::vector<float>(kRows, 2.54F));
  const DeviceBuffer<int8_t> q(size_t{kRows} * kGroup);
  const DeviceBuffer<float> scales(kRows);
  cuda::quantize(x.get(), kRows, 1, {q.get(), scales.get(), 1}, nullptr);
  EXPECT_EQ(q.read()[size_t{kRows - 1} * kGroup], 127);
  EXPECT_EQ(scales.read().back(), 2.54F / 127.0F);
}

// Ties, NaN, infinities and both zeros; less and more than a block's 4096 values, and more than two levels.
TEST_P(Kernels, LikeliestAreThoseOfTheCpu) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  struct Size {
    int columns, k;
  };
  std::vector<Size> sizes = {{1, 1}, {31, 5}, {64, 64}, {300, 64}, {4096, 3}, {4097, 1}};
  if (!kSanitized && !kRecorded) sizes.insert(sizes.end(), {{9000, 64}, {49152, 1}, {270000, 64}});
  for (const auto& [columns, k] : sizes) {
    constexpr int kRows = 3;
    const auto n = static_cast<size_t>(columns);
    std::vector<float> x(kRows * n);
    Random random(static_cast<uint64_t>(columns));
    for (float& value : x) value = static_cast<float>(random.below(200)) / 8 - 12;  // many equals
    const std::array odd = {0.0F, -0.0F, kInfinity, -kInfinity, kNaN, 1e-42F, -1e-42F};
    for (size_t i = 0; i < n; i += 7) x[n + i] = odd[random.below(odd.size())];
    std::fill(x.begin() + static_cast<std::ptrdiff_t>(2 * n), x.end(), kNaN);
    if (columns > 40) x[3 * n - 1] = -kInfinity;
    const DeviceBuffer<float> device(x);
    const DeviceBuffer<uint64_t> scratch(cuda::likeliest_scratch_keys(kRows, columns, k));
    const uint64_t* found = cuda::likeliest(device.get(), kRows, columns, k, scratch.get(), nullptr);
    const std::vector<uint64_t> keys = scratch.read();
    const auto* first = keys.data() + (found - scratch.get());
    ASSERT_EQ(first + static_cast<size_t>(kRows) * k, keys.data() + keys.size());
    for (size_t row = 0; row < kRows; ++row) {
      std::vector<TokenLogit> expected(static_cast<size_t>(k));
      find_likeliest(std::span(x).subspan(row * n, n), expected);
      for (size_t i = 0; i < expected.size(); ++i) {
        const uint64_t key = first[row * expected.size() + i];
        ASSERT_EQ(cuda::key_index(key), expected[i].id)
            << columns << " columns, row " << row << ", place " << i;
        if (std::isnan(expected[i].logit)) {
          ASSERT_TRUE(std::isnan(cuda::key_value(key)));
        } else {
          ASSERT_EQ(cuda::key_value(key), expected[i].logit);
        }
      }
    }
  }
}

// A grid of no blocks is an error of the launch, which TearDown() would find.
TEST_P(Kernels, NoRowsAreNoLaunch) {
  constexpr int kColumns = 64;
  const TestWeight w(WeightType::kQ4_0, 16, kColumns, 9);
  const TestRows x(gaussians(kColumns, 5), 1, kColumns);
  const std::vector<float> zeros(kColumns);
  const DeviceBuffer<float> in(zeros);
  const DeviceBuffer<float> out(zeros);
  const cuda::Product product{w.device, nullptr, out.get(), false};
  cuda::mat_vec(&product, 1, x.device(), 0, nullptr);
  cuda::mat_tile(product, x.device(), 0, nullptr);
  cuda::mat_float(product, in.get(), 0, nullptr);
  cuda::finish_product(in.get(), product, 0, nullptr);
  cuda::quantize(in.get(), 0, kColumns, x.device(), nullptr);
  cuda::norm_quantize(in.get(), in.get(), 1e-5F, 0, kColumns, x.device(), nullptr);
  cuda::swiglu_quantize(in.get(), in.get(), 0, kColumns, x.device(), nullptr);
  cuda::norm(in.get(), in.get(), 1e-5F, 0, kColumns, out.get(), nullptr);
  cuda::swiglu(in.get(), in.get(), 0, out.get(), nullptr);
  cuda::decode_rows(w.device, nullptr, 0, 0, out.get(), nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(out.read(), zeros);
}

INSTANTIATE_TEST_SUITE_P(Orders, Kernels, ::testing::ValuesIn(thread_orders()), order_name);

}  // namespace
}  // namespace kvfold::testing
