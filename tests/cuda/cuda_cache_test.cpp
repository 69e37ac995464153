// Operations on caches whose pages lie on a device give the bits of the host's, and bring no page to it that
// they need not.
#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "engine/cuda_pages.h"
#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "engine/random.h"
#include "tests/cuda/tested_device.h"
#include "tests/must.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

constexpr int kRows = kSanitized ? 40 : 75;
constexpr size_t kPoolBytes = size_t{8} << 20;
constexpr std::array kParts = {Part::kKey, Part::kValue};

std::shared_ptr<PagePool> device_pool(CacheType type, int head_dim) {
  std::shared_ptr<const CudaDevice> device = must(CudaDevice::open(-1));
  device->make_current();
  DeviceMemory memory;
  EXPECT_TRUE(memory.reserve(kPoolBytes, "pages").ok());
  return must(PagePool::create(
      type, head_dim, std::make_unique<CudaPages>(std::move(memory), std::move(device)), kPoolBytes));
}

// The same random rows in any pool. Lane 1 lacks some; every fifth row is zero.
KvCache random_cache(const std::shared_ptr<PagePool>& pool, const CacheShape& shape, uint64_t seed) {
  Random random(seed);
  KvCache cache(pool, shape);
  EXPECT_TRUE(cache.grow(std::vector<TokenId>(kRows, 1)).ok());
  std::vector<float> row(static_cast<size_t>(shape.head_dim));
  for (int lane = 0; lane < shape.lanes(); ++lane)
    for (const Part part : kParts)
      for (int slot = 0; slot < kRows; ++slot) {
        for (float& x : row) x = slot % 5 == 0 ? 0.0F : static_cast<float>(random.gaussian());
        const PageTable::RowPlace place = cache.row_place(part, lane, slot);
        kv_store_row(pool->type(), part, shape.head_dim, pool->write(place.page), place.row, row.data());
      }
  return must(erase(cache, must(Selection::parse("layers=0 heads=1 rows=3-9,35", shape, kRows))));
}

// The bytes of all rows, lane after lane.
std::vector<std::byte> bytes_of(const KvCache& cache) {
  const CacheShape& shape = cache.shape();
  const CacheType type = cache.pool()->type();
  std::vector<std::byte> out;
  for (int lane = 0; lane < shape.lanes(); ++lane)
    for (const Part part : kParts)
      for (const KvSpan& span : cache.lanes().table(part, lane).spans())
        for (int i = 0; i < span.count; ++i) {
          std::vector<std::byte> page(cache.pool()->page_bytes());
          kv_copy_row(type, part, shape.head_dim, cache.pool()->read(span.page), span.first + i, page.data(),
                      0);
          out.insert(out.end(), page.begin(), page.end());
        }
  return out;
}

using Operation = std::function<Result<KvCache>(const KvCache& a, const KvCache& b)>;

std::vector<std::pair<std::string, Operation>> operations(const CacheShape& shape) {
  const Selection some = must(Selection::parse("layers=0-1 rows=1-34,38", shape, kRows));
  const Selection values = must(Selection::parse("heads=0 rows=5-6,20-39 parts=v", shape, kRows));
  SteeringVectors lanes;
  Random random(9);
  lanes.keys.resize(static_cast<size_t>(shape.lanes()) * shape.head_dim);
  lanes.values.resize(static_cast<size_t>(shape.head_dim));
  for (std::vector<float>* v : {&lanes.keys, &lanes.values})
    for (float& x : *v) x = static_cast<float>(random.gaussian());
  const auto match = [](NormTarget target, const Selection& s) {
    return [=](const KvCache& a, const KvCache& b) { return match_norm(a, b, target, s); };
  };
  return {{"mix", [=](const KvCache& a, const KvCache& b) { return mix(a, b, 0.3, some); }},
          {"mix values", [=](const KvCache& a, const KvCache& b) { return mix(a, b, 1, values); }},
          {"add", [=](const KvCache& a, const KvCache&) { return add(a, lanes, -0.7, some); }},
          {"scale", [=](const KvCache& a, const KvCache&) { return scale(a, 1.0 / 3, some); }},
          {"match rows", match(NormTarget::kRow, some)},
          {"match the mean", match(NormTarget::kLaneMean, some)},
          {"match the mean of values", match(NormTarget::kLaneMean, values)}};
}

class DeviceCache : public ::testing::TestWithParam<ThreadOrder> {
 protected:
  void SetUp() override { use_order(GetParam()); }
  void TearDown() override { EXPECT_TRUE(no_reports()); }
};

TEST_P(DeviceCache, OperationsGiveTheBitsOfTheHost) {
  for (const CacheType type : {CacheType::kF16, CacheType::kF32, CacheType::kQ8})
    for (const int head_dim : {4, 40}) {
      const CacheShape shape{2, 2, head_dim};
      const std::array pools = {must(PagePool::create(type, head_dim, kPoolBytes)),
                                device_pool(type, head_dim)};
      std::array<std::vector<KvCache>, 2> caches;
      for (size_t i = 0; i < 2; ++i)
        for (const uint64_t seed : {1, 2}) caches[i].push_back(random_cache(pools[i], shape, seed));
      // Rows of the second begin elsewhere in their pages.
      for (std::vector<KvCache>& pair : caches) {
        const KvSlice tail = must(
            extract(pair[1], must(Selection::parse("rows=10-" + std::to_string(kRows - 1), shape, kRows))));
        const Selection first = must(Selection::parse("rows=0-9", shape, kRows));
        pair[1] = must(to_cache(must(concat(std::vector<KvSlice>{must(extract(pair[1], first)), tail}))));
      }
      ASSERT_EQ(bytes_of(caches[0][0]), bytes_of(caches[1][0]));
      for (const auto& [name, operation] : operations(shape)) {
        const std::vector<std::byte> before = bytes_of(caches[1][0]);
        const KvCache expected = must(operation(caches[0][0], caches[0][1]));
        const auto before_it = device_use();
        const KvCache found = must(operation(caches[1][0], caches[1][1]));
        if (const auto use = device_use()) {
          EXPECT_GT(use->kernels, before_it->kernels) << name;
          EXPECT_LE(use->copies_to_host, before_it->copies_to_host + 2)
              << name << ": norms, and whether the pages hold it, at most";
        }
        ASSERT_EQ(bytes_of(found), bytes_of(expected))
            << name << ", type " << static_cast<int>(type) << ", head_dim " << head_dim;
        ASSERT_EQ(bytes_of(caches[1][0]), before) << name << " changes its input";
      }
    }
}

TEST_P(DeviceCache, WhatPagesCannotHoldIsRefusedAsOnTheHost) {
  for (const CacheType type : {CacheType::kF16, CacheType::kF32, CacheType::kQ8}) {
    const CacheShape shape{2, 2, 4};
    const Selection some = must(Selection::parse("layers=1 rows=1-34", shape, kRows));
    std::vector<std::string> errors;
    for (const auto& pool : {must(PagePool::create(type, 4, kPoolBytes)), device_pool(type, 4)}) {
      const KvCache cache = random_cache(pool, shape, 1);
      const std::vector<std::byte> before = bytes_of(cache);
      const size_t held = pool->pages_held();
      const Result<KvCache> scaled = scale(cache, 1e39, some);
      ASSERT_FALSE(scaled.ok());
      errors.push_back(scaled.status().message());
      EXPECT_EQ(pool->pages_held(), held);
      EXPECT_EQ(bytes_of(cache), before);
    }
    EXPECT_EQ(errors[0].substr(0, 26), "layer 1 head 0: K becomes ");
    EXPECT_EQ(errors[0], errors[1]);
  }
}

// A fork that grows copies the rows of its last pages, with one launch for up to 256 of them.
TEST_P(DeviceCache, ForksGrowOnTheDevice) {
  const CacheShape shape{kSanitized ? 2 : 65, 2, 4};
  const std::shared_ptr<PagePool> pool = device_pool(CacheType::kQ8, 4);
  const KvCache cache = random_cache(pool, shape, 1);
  const std::vector<std::byte> before = bytes_of(cache);
  pool->flush();
  const auto before_it = device_use();
  KvCache fork = cache.fork();
  ASSERT_TRUE(fork.grow(std::vector<TokenId>(3, 1)).ok());
  if (const auto use = device_use()) {
    EXPECT_EQ(use->copies_to_host, before_it->copies_to_host);
    EXPECT_EQ(use->copies_to_device, before_it->copies_to_device);
  }
  EXPECT_EQ(bytes_of(must(truncate(fork, kRows))), before);
  EXPECT_EQ(bytes_of(cache), before);
  if (const auto use = device_use()) {
    EXPECT_EQ(use->kernels, before_it->kernels + (kSanitized ? 1 : 2));
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, DeviceCache, ::testing::ValuesIn(thread_orders()), order_name);

#if !defined(KVFOLD_ON_GPU)

// Rows that move are a matter of page tables alone.
TEST_P(DeviceCache, MovedRowsStayWhereTheyAre) {
  const CacheShape shape{2, 2, 4};
  const std::shared_ptr<PagePool> pool = device_pool(CacheType::kF16, 4);
  const KvCache cache = random_cache(pool, shape, 1);
  pool->flush();
  const simt::DeviceUse use = simt::device_use();
  const Selection some = must(Selection::parse("rows=4-20", shape, kRows));
  const KvSlice slice = must(extract(cache, some));
  const KvCache inserted = must(insert(cache, slice, 7, {}));
  const Selection first_heads = must(Selection::parse("heads=0 rows=4-20", shape, kRows));
  must(overwrite(inserted, must(extract(cache, first_heads)), some.rows));
  must(erase(inserted, must(Selection::parse("heads=1 rows=4-20", shape, inserted.size()))));
  must(keep(inserted, must(Selection::parse("rows=4-20", shape, inserted.size()))));
  must(shift(inserted, some.rows, 5));
  must(truncate(inserted, 30));
  must(fill_missing(must(extract(cache, must(Selection::parse("rows=4-20 parts=k", shape, kRows)))), slice,
                    std::nullopt, 1));
  EXPECT_EQ(simt::device_use().kernels, use.kernels);
  EXPECT_EQ(simt::device_use().copies_to_host, use.copies_to_host);
  EXPECT_EQ(simt::device_use().copies_to_device, use.copies_to_device);
}

// What is made up on the host reads each page of its source once, and no page that nobody wrote.
TEST_P(DeviceCache, NoiseCrossesByPage) {
  const CacheShape shape{3, 2, 4};
  const std::shared_ptr<PagePool> pool = device_pool(CacheType::kF16, 4);
  const KvCache cache = random_cache(pool, shape, 1);
  pool->flush();
  const size_t held = pool->pages_held();
  const simt::DeviceUse use = simt::device_use();
  const Selection all = Selection::all(shape, cache.size());
  const KvCache noisy = must(noise(cache, all, NoiseKind::kMatched, 1));
  const size_t made = pool->pages_held() - held;
  pool->flush();
  EXPECT_EQ(simt::device_use().copies_to_host - use.copies_to_host, held);
  EXPECT_EQ(simt::device_use().copies_to_device - use.copies_to_device, made);
}

// Of a device that is lost nothing is written, and no rows are made of what it did not give.
TEST(DeviceCacheErrors, NoFileHoldsWhatCouldNotBeRead) {
  const CacheShape shape{2, 2, 4};
  for (const simt::Call call : {simt::Call::kMemcpy, simt::Call::kSynchronize}) {
    simt::reset_device();
    {
      TemporaryFolder folder;
      const std::shared_ptr<PagePool> pool = device_pool(CacheType::kF16, 4);
      const KvCache cache = random_cache(pool, shape, 1);
      pool->flush();
      const std::string path = folder.file("rows.safetensors");
      simt::fail_call(call, 3);
      const Status saved = save_cache(cache, {}, path);
      ASSERT_FALSE(saved.ok());
      EXPECT_NE(saved.message().find("cuda: reading pages of a cache: "), std::string::npos)
          << saved.message();
      EXPECT_EQ(folder.entries(), 0U);
      EXPECT_FALSE(noise(cache, Selection::all(shape, kRows), NoiseKind::kMatched, 1).ok());
    }
    simt::reset_device();
  }
}

TEST(DeviceCacheErrors, ComeOut) {
  const CacheShape shape{2, 2, 4};
  for (const auto& [call, text] : {std::pair{simt::Call::kMalloc, "no memory for changing rows of a cache"},
                                   std::pair{simt::Call::kMemcpy, "changing rows of a cache"},
                                   std::pair{simt::Call::kLaunch, "changing rows of a cache"},
                                   std::pair{simt::Call::kSynchronize, "changing rows of a cache"}}) {
    simt::reset_device();
    {
      const std::shared_ptr<PagePool> pool = device_pool(CacheType::kF16, 4);
      const KvCache cache = random_cache(pool, shape, 1);
      pool->flush();
      const size_t held = pool->pages_held();
      simt::fail_call(call, 1);
      const Selection some = must(Selection::parse("rows=1-9", shape, kRows));
      const Result<KvCache> scaled = scale(cache, 2, some);
      ASSERT_FALSE(scaled.ok()) << static_cast<int>(call);
      EXPECT_NE(scaled.status().message().find(text), std::string::npos) << scaled.status().message();
      EXPECT_EQ(pool->pages_held(), held);
      // Memory may be there the next time; what else fails is the end of the device.
      EXPECT_EQ(scale(cache, 2, some).ok(), call == simt::Call::kMalloc);
    }
  }
  simt::reset_device();
}

#endif

}  // namespace
}  // namespace kvfold::testing
