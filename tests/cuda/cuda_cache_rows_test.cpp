// The kernels that work on rows of caches leave the pages as the host's loops leave them, byte for byte: also
// the rows that no run names. KVFOLD_CUDA_FULL=1 runs all sizes of rows.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "engine/kv/page_pool.h"
#include "engine/random.h"
#include "kernels/cuda/kernels.h"
#include "tests/cuda/device_buffer.h"
#include "tests/cuda/tested_device.h"

namespace kvfold::testing {
namespace {

constexpr int kSources = 8;  // pages that hold rows: of keys and of values in turn
constexpr int kLanes = 5;
constexpr std::byte kUntouched{0x5A};

struct Case {
  CacheType type;
  int head_dim;
};

// The same pages on the host and on the device.
class Fixture {
 public:
  Fixture(const Case& c, int targets, uint64_t seed) : c_(c), random_(seed) {
    const int pages = kSources + targets;
    page_bytes_ = kv_page_bytes(c.type, c.head_dim);
    pool_ = *PagePool::create(c.type, c.head_dim, pages * page_bytes_);
    for (int page = 0; page < pages; ++page) {
      EXPECT_EQ(pool_->allocate(), static_cast<PageId>(page));
      std::fill_n(pool_->write(static_cast<PageId>(page)), page_bytes_, kUntouched);
    }
    for (PageId page = 0; page < kSources; ++page)
      for (int row = 0; row < kPageRows; ++row)
        kv_store_row(c.type, part(page), c.head_dim, pool_->write(page), row, row_of(row).data());
    pages_ = pages;
    device_ = std::make_unique<DeviceBuffer<std::byte>>(host_bytes());
  }
  ~Fixture() {
    for (int page = 0; page < pages_; ++page) pool_->release(static_cast<PageId>(page));
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  // Runs that begin and end anywhere in their pages, several to one page.
  std::vector<RowRun> runs(int count) {
    struct End {
      uint32_t page;
      int row;
    };
    End ends[2] = {{0, kPageRows}, {0, kPageRows}};
    uint32_t next = kSources;
    std::vector<RowRun> out;
    for (int i = 0; i < count; ++i) {
      const int which = below(2);
      const int rows = below(4) == 0 ? kPageRows : 1 + below(kPageRows);
      End& end = ends[which];
      if (end.row + rows > kPageRows) end = {next++, below(kPageRows - rows + 1)};
      const auto any_row = [&] { return static_cast<uint8_t>(below(kPageRows - rows + 1)); };
      const auto any_page = [&] { return static_cast<uint32_t>(2 * below(kSources / 2) + which); };
      out.push_back({any_page(), end.page, any_page(), 2 * below(kLanes) + which, any_row(),
                     static_cast<uint8_t>(end.row), any_row(), static_cast<uint8_t>(rows)});
      end.row += rows;
    }
    return out;
  }

  void check_change(const RowChange& change, const std::vector<RowRun>& runs, const char* what) {
    const DeviceBuffer<RowRun> device_runs(runs);
    const DeviceBuffer<float> vectors(std::vector<float>(change.vectors.begin(), change.vectors.end()));
    const DeviceBuffer<double> wanted(std::vector<double>(change.wanted.begin(), change.wanted.end()));
    RowChange there = change;
    there.vectors = {vectors.get(), change.vectors.size()};
    there.wanted = {wanted.get(), change.wanted.size()};
    const DeviceBuffer<unsigned> unheld(std::vector<unsigned>{0});
    cuda::change_rows(view(), there, {device_runs.get(), runs.size()}, unheld.get(), nullptr);
    const auto found = pool_->change_rows(change, runs);
    ASSERT_TRUE(found.ok());
    ASSERT_EQ(unheld.read()[0], found->has_value() ? 1U : 0U) << what;
    if (!found->has_value()) compare(what);  // else the host has stopped
  }

  void check_copies(const std::vector<RowRun>& runs) {
    std::vector<RowCopy> copies;
    copies.reserve(runs.size());
    for (const RowRun& run : runs)
      copies.push_back({run.from, run.to, part_of(run.table), run.from_row, run.to_row, run.count});
    cuda::copy_rows(view(), copies, nullptr);
    pool_->copy_rows(copies);
    compare("copy");
  }

  void check_norms(const std::vector<RowRun>& runs) {
    const DeviceBuffer<RowRun> device_runs(runs);
    const DeviceBuffer<double> norms(runs.size() * kPageRows);
    cuda::row_norms(view(), {device_runs.get(), runs.size()}, norms.get(), nullptr);
    std::vector<double> expected(runs.size() * kPageRows);
    ASSERT_TRUE(pool_->row_norms(runs, expected).ok());
    ASSERT_EQ(norms.read(), expected);
  }

 private:
  static Part part(PageId page) { return part_of(static_cast<int>(page)); }
  int below(int n) { return static_cast<int>(random_.below(static_cast<uint64_t>(n))); }
  KvPagesView view() const { return {device_->get(), page_bytes_, c_.type, c_.head_dim}; }

  // Of any magnitude that the pages hold; every seventh is zero.
  std::vector<float> row_of(int row) {
    std::vector<float> out(static_cast<size_t>(c_.head_dim));
    const double magnitude = std::pow(10.0, below(6) - 3);
    for (float& x : out) x = row % 7 == 3 ? 0.0F : static_cast<float>(magnitude * random_.gaussian());
    return out;
  }
  std::vector<std::byte> host_bytes() const {
    const std::byte* begin = pool_->view().arena;
    return {begin, begin + pages_ * page_bytes_};
  }
  void compare(const char* what) {
    const std::vector<std::byte> expected = host_bytes();
    const std::vector<std::byte> found = device_->read();
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_EQ(found[i], expected[i])
          << what << ": byte " << i % page_bytes_ << " of page " << i / page_bytes_;
  }

  Case c_;
  Random random_;
  size_t page_bytes_ = 0;
  int pages_ = 0;
  std::shared_ptr<PagePool> pool_;
  std::unique_ptr<DeviceBuffer<std::byte>> device_;
};

std::vector<Case> cases() {
  std::vector<int> dims = {4, 40, 64};
  if (std::getenv("KVFOLD_CUDA_FULL") != nullptr) dims.insert(dims.end(), {1, 33, 80, 96, 128, 256});
  std::vector<Case> out;
  for (const CacheType type : {CacheType::kF16, CacheType::kF32, CacheType::kQ8})
    for (const int head_dim : dims) out.push_back({type, head_dim});
  return out;
}

std::string text(const Case& c) {
  return "type " + std::to_string(static_cast<int>(c.type)) + ", head_dim " + std::to_string(c.head_dim);
}

class CacheRows : public ::testing::TestWithParam<ThreadOrder> {
 protected:
  void SetUp() override { use_order(GetParam()); }
  void TearDown() override { EXPECT_TRUE(no_reports()); }
};

TEST_P(CacheRows, AreChangedAsOnTheHost) {
  // Three blocks of eight runs, the last not full.
  constexpr int kRuns = kSanitized ? 9 : 21;
  for (const Case& c : cases()) {
    SCOPED_TRACE(text(c));
    Random random(3);
    std::vector<float> vectors(static_cast<size_t>(2) * kLanes * c.head_dim);
    for (float& x : vectors) x = static_cast<float>(random.gaussian());
    std::vector<float> spikes(vectors.size());
    for (size_t i = 0; i < spikes.size(); i += static_cast<size_t>(c.head_dim)) spikes[i] = 1e30F;
    std::vector<double> wanted(static_cast<size_t>(2) * kLanes);
    for (double& x : wanted) x = std::exp(random.gaussian());
    struct Way {
      const char* name;
      RowChange change;
    };
    for (const Way& way : {Way{"mix", {RowFormula::kMix, 0.3}}, Way{"add", {RowFormula::kAdd, -0.7, vectors}},
                           Way{"scale", {RowFormula::kScale, 1.0 / 3}},
                           Way{"scale beyond what halves hold", {RowFormula::kScale, 1e6}},
                           Way{"one value beyond what any page holds", {RowFormula::kAdd, 1e10, spikes}},
                           Way{"scale to almost nothing", {RowFormula::kScale, 1e-6}},
                           Way{"match rows", {RowFormula::kMatchRow}},
                           Way{"match means", {RowFormula::kMatchMean, 0, {}, wanted}}}) {
      Fixture fixture(c, kRuns, 7);
      fixture.check_change(way.change, fixture.runs(kRuns), way.name);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(CacheRows, AreCopiedAsOnTheHost) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(text(c));
    // More than one launch takes, where rows are small.
    const int count = c.head_dim == 4 && !kSanitized ? 300 : 21;
    Fixture fixture(c, count, 8);
    fixture.check_copies(fixture.runs(count));
    if (HasFatalFailure()) return;
  }
}

TEST_P(CacheRows, HaveTheNormsOfTheHost) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(text(c));
    Fixture fixture(c, 21, 9);
    fixture.check_norms(fixture.runs(21));
    if (HasFatalFailure()) return;
  }
}

TEST_P(CacheRows, NoneIsNoLaunch) {
  Fixture fixture({CacheType::kF16, 4}, 1, 1);
  fixture.check_change({RowFormula::kScale, 2}, {}, "none");
  fixture.check_copies({});
  fixture.check_norms({});
}

INSTANTIATE_TEST_SUITE_P(Orders, CacheRows, ::testing::ValuesIn(thread_orders()), order_name);

}  // namespace
}  // namespace kvfold::testing
