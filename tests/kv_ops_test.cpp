// What single operations promise beyond the dense model: their errors and their costs.
#include "engine/kv/ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/kv/flat_rows.h"
#include "engine/kv/lane_matrix.h"
#include "engine/random.h"
#include "tests/far_memory.h"
#include "tests/random_cache.h"

namespace kvfold::testing {
namespace {

// ---- selections ----

struct BadSelection {
  const char* text;
  const char* says;
};

class BadSelections : public ::testing::TestWithParam<BadSelection> {};

TEST_P(BadSelections, AreRefusedWithWhatExists) {
  const auto result = Selection::parse(GetParam().text, {30, 3, 64}, 13);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().message().find(GetParam().says), std::string::npos) << result.status().message();
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadSelections,
    ::testing::Values(
        BadSelection{"layers=9-0", "'9-0' is reversed; 0-29 exist"},
        BadSelection{"layers=0-30", "out of range; 0-29 exist"},
        BadSelection{"heads=3", "out of range; 0-2 exist"},
        BadSelection{"rows=13", "out of range; 0-12 exist"},
        BadSelection{"rows=-1", "neither a number nor a range"},
        BadSelection{"rows=1--2", "neither a number nor a range"}, BadSelection{"rows=0-5,3-8", "overlaps"},
        BadSelection{"rows=5,4", "overlaps or precedes"}, BadSelection{"rows=5,5", "overlaps or precedes"},
        BadSelection{"rows=3-5,5", "overlaps or precedes"},
        BadSelection{"rows=1,,2", "neither a number nor a range"}, BadSelection{"rows=1,", "no range"},
        BadSelection{"rows=99999999999999999999", "neither a number"},
        BadSelection{"rows=0x1", "neither a number"}, BadSelection{"rows", "expected layers="},
        BadSelection{"row=1", "unknown word 'row'"}, BadSelection{"rows=1 rows=2", "given twice"},
        BadSelection{"rows=3-", "neither a number nor a range"},
        BadSelection{"parts=x", "expected k, v or kv"}, BadSelection{"parts=", "expected k, v or kv"}));

TEST(Selection, TextForm) {
  const Selection s = must(Selection::parse("rows=3-5,9 layers=0-1,4  parts=k", {5, 3, 64}, 10));
  EXPECT_EQ(s.layers, (std::vector<int>{0, 1, 4}));
  EXPECT_EQ(s.heads, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(s.rows, (std::vector<int>{3, 4, 5, 9}));
  EXPECT_TRUE(s.keys && !s.values);
  EXPECT_TRUE(must(Selection::parse("rows=", {5, 3, 64}, 10)).empty());
  EXPECT_EQ(error_of(Selection::parse("rows=0", {5, 3, 64}, 0)),
            "selection: rows=0: '0' is out of range; there are none");
  for (const char* text : {"", "parts=kv", "parts=*", "rows=* layers=*"}) {
    const Selection all = must(Selection::parse(text, {5, 3, 64}, 2));
    EXPECT_TRUE(all.keys && all.values && all.layers.size() == 5 && all.heads.size() == 3) << text;
    EXPECT_EQ(all.rows, (std::vector<int>{0, 1})) << text;
  }
  EXPECT_TRUE((Selection{{0}, {0}, {0}, false, false}).empty());
}

// Selections that were made by hand, in whatever operation takes one.
TEST(Selection, EveryOperationChecksIt) {
  const auto pool = make_pool();
  const KvCache cache = random_cache(pool, 4, 1);
  const auto all = [&](const Selection& s) {
    const std::vector<std::string> lines = {error_of(extract(cache, s)),
                                            error_of(erase(cache, s)),
                                            error_of(keep(cache, s)),
                                            error_of(scale(cache, 2, s)),
                                            error_of(add(cache, {std::vector<float>(64), {}}, 1, s)),
                                            error_of(mix(cache, cache, 0.5, s)),
                                            error_of(match_norm(cache, cache, NormTarget::kRow, s)),
                                            error_of(match_norm(cache, cache, NormTarget::kLaneMean, s)),
                                            error_of(noise(cache, s, NoiseKind::kZero, 1))};
    for (const std::string& line : lines) EXPECT_EQ(line, lines[0]);
    return lines[0];
  };
  EXPECT_EQ(all({{0, 3}, {0}, {0}, true, true}), "selection: layer 3 asked; 0-2 exist");
  EXPECT_EQ(all({{0}, {-1}, {0}, true, true}), "selection: head -1 asked; 0-1 exist");
  EXPECT_EQ(all({{0}, {0}, {0, 4}, true, true}), "selection: row 4 asked; 0-3 exist");
  EXPECT_EQ(all({{0}, {0}, {2, 1}, true, true}), "selection: row 1 after 2: expected increasing order");
  EXPECT_EQ(error_of(shift(cache, std::vector<int>{4}, 1)), "selection: row 4 asked; 0-3 exist");
}

// ---- origins ----

// Sources have other numbers in another cache.
TEST(Origins, AnOverwrittenRowHasTheNameOfItsSource) {
  const auto pool = make_pool();
  const auto of = [&](const std::string& source, TokenId token) {
    const std::vector<float> row(static_cast<size_t>(row_width(kShape)), 1.0F);
    return slice_of(must(cache_of_rows(pool, kShape, std::span(&token, 1), row.data(), source)));
  };
  const std::vector<KvSlice> two = {of("first", 1), of("second", 2)};
  const std::vector<KvSlice> three = {of("third", 3), of("second", 4), of("first", 5)};
  const KvCache target = must(to_cache(must(concat(two))));
  const KvCache other = must(to_cache(must(concat(three))));
  const auto source_of = [](const KvCache& cache, int row) {
    return cache.rows().sources[cache.rows().origins[row].source];
  };
  const std::vector<int> both = {0, 1};
  const KvCache changed = must(overwrite(target, slice_of(other, "rows=0-1"), both));
  EXPECT_EQ(source_of(changed, 0), "third");
  EXPECT_EQ(source_of(changed, 1), "second");
  EXPECT_EQ(source_of(must(overwrite(target, slice_of(other, "rows=2"), std::vector<int>{1})), 1), "first");
}

// A mark says that a vector of the row was changed, or lost: rows that no selected lane holds have none.
TEST(Origins, RowsThatAnOperationDoesNotReachAreNotMarked) {
  const auto pool = make_pool();
  const KvCache whole = random_cache(pool, 3, 1);
  const KvCache cache = must(erase(whole, select(whole, "layers=1 rows=1")));
  const auto marks = [](const Rows& rows) {
    std::string out;
    for (const Origin& origin : rows.origins) out += "," + operation_names(origin.operations);
    return out.substr(1);
  };
  EXPECT_EQ(marks(cache.rows()), ",erase,");
  const Selection layer = select(cache, "layers=1");
  EXPECT_EQ(marks(must(scale(cache, 2, layer)).rows()), "scale,erase,scale");
  EXPECT_EQ(marks(must(noise(cache, layer, NoiseKind::kUnit, 1)).rows()), "noise,erase,noise");
  EXPECT_EQ(marks(must(erase(cache, select(cache, "layers=1 rows=0-1"))).rows()), "erase,erase,");
  const KvSlice keys = slice_of(cache, "layers=1 parts=k");
  EXPECT_EQ(marks(*must(noise(keys, NoiseKind::kZero, 1)).rows), "noise,erase,noise");
  EXPECT_EQ(marks(*must(fill_missing(keys, slice_of(cache), std::nullopt, 1)).rows), "fill,erase,fill");
  const std::vector<int> rows = {0, 1, 2};
  EXPECT_EQ(marks(must(overwrite(cache, keys, rows)).rows()), "overwrite,erase,overwrite");
}

// What no kept lane holds is gone with the lanes that held it.
TEST(Keep, IsEraseOfEverythingElse) {
  const auto pool = make_pool();
  const KvCache whole = random_cache(pool, 9, 1);
  const KvCache cache = must(erase(whole, select(whole, "layers=2 rows=1,4-5")));
  const KvCache kept = must(keep(cache, select(cache, "layers=2 rows=0-5")));
  const KvCache left = must(erase(must(truncate(cache, 6)), select(must(truncate(cache, 6)), "layers=0-1")));
  EXPECT_EQ(kept.rows().tokens, (std::vector<TokenId>{100, 102, 103}));
  EXPECT_EQ(kept.rows().tokens, left.rows().tokens);
  EXPECT_EQ(kept.rows().origins, left.rows().origins);
  EXPECT_EQ(kept.next_position(), 9);
  EXPECT_EQ(load_lane(kept.lanes(), Part::kValue, 4).data, load_lane(left.lanes(), Part::kValue, 4).data);
  EXPECT_EQ(kept.lanes().table(Part::kKey, 0).rows(), 0);
  EXPECT_EQ(must(keep(cache, select(cache, "heads="))).size(), 0);
}

// ---- costs ----

TEST(Cost, ForkAndWholeInsertCopyNoRow) {
  const auto pool = make_pool();
  const KvCache source = random_cache(pool, 100, 1);
  const size_t pages = pool->pages_held();
  const KvCache fork = source.fork();
  const KvSlice all = slice_of(source);
  const KvCache target = random_cache(pool, 40, 2);
  const size_t both = pool->pages_held();
  const KvCache joined = must(insert(target, all, 17, {InsertPositions::Kind::kFrom, 1000}));
  const KvCache moved = must(shift(joined, select(joined, "").rows, 12));
  EXPECT_EQ(pool->rows_copied(), 0U);
  EXPECT_EQ(pool->pages_held(), both);
  EXPECT_EQ(pages, 2U * kShape.lanes() * 4U);
}

// 1,000 shifts of some rows and of all: when they are taken back, positions are what they were, and every
// vector is still the same bits of the same page.
TEST(Cost, ShiftsThereAndBackLeaveEveryBit) {
  const auto pool = make_pool(CacheType::kF16);
  const KvCache start = random_cache(pool, 100, 1);
  const size_t pages = pool->pages_held();
  Random random(2);
  KvCache cache = start.fork();
  std::vector<std::pair<std::vector<int>, int32_t>> shifts;
  for (int i = 0; i < 500; ++i) {
    std::vector<int> rows;
    const bool some = random.below(2) == 0;
    for (int row = 0; row < 100; ++row)
      if (!some || random.below(2) == 0) rows.push_back(row);
    shifts.emplace_back(rows, static_cast<int32_t>(random.below(200001)) - 100000);
    cache = must(shift(cache, rows, shifts.back().second));
  }
  EXPECT_NE(cache.rows().positions, start.rows().positions);
  for (auto s = shifts.rbegin(); s != shifts.rend(); ++s) cache = must(shift(cache, s->first, -s->second));
  EXPECT_EQ(cache.rows().positions, start.rows().positions);
  EXPECT_EQ(cache.next_position(), start.next_position());
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < kShape.lanes(); ++lane)
      EXPECT_EQ(&cache.lanes().table(part, lane), &start.lanes().table(part, lane));
  EXPECT_EQ(pool->pages_held(), pages);
  EXPECT_EQ(pool->rows_copied(), 0U);
}

TEST(Cost, FeedingAForkCopiesOnlyItsLastPage) {
  const auto pool = make_pool();
  const KvCache source = random_cache(pool, 40, 1);
  KvCache fork = source.fork();
  const size_t before = pool->pages_held();
  const TokenId token = 7;
  ASSERT_TRUE(fork.grow(std::span(&token, 1)).ok());
  EXPECT_EQ(pool->pages_held() - before, 2U * kShape.lanes());
  EXPECT_EQ(pool->rows_copied(), 2U * kShape.lanes() * 8U);
  EXPECT_EQ(source.size(), 40);
}

// ---- pages ----

// Rows of a page that nobody else holds stand in it behind the last ones, where they were before they were
// moved to the front.
TEST(Pages, RowsFedBehindRowsThatWereTurnedAroundHarmNone) {
  const auto pool = make_pool();
  std::vector<float> wanted;
  KvCache turned = [&] {
    const KvCache cache = random_cache(pool, 20, 1);
    const KvSlice back = slice_of(cache, "rows=10-19");
    const KvCache out = must(insert(must(truncate(cache, 10)), back, 0, {}));
    wanted = load_lane(out.lanes(), Part::kKey, 3).data;
    return out;
  }();
  const std::vector<TokenId> tokens(15, 7);
  ASSERT_TRUE(turned.grow(tokens).ok());
  const std::vector<float> fed(kShape.head_dim, -1);
  for (int slot = 20; slot < turned.size(); ++slot) {
    const auto place = turned.row_place(Part::kKey, 3, slot);
    kv_store_row(pool->type(), Part::kKey, kShape.head_dim, pool->write(place.page), place.row, fed.data());
  }
  wanted.insert(wanted.end(), tokens.size() * fed.size(), -1);
  EXPECT_EQ(load_lane(turned.lanes(), Part::kKey, 3).data, wanted);
}

// A table that names a page of which it has no row would keep it from others.
TEST(Pages, OfRowsThatAreGoneAreGivenBack) {
  const auto pool = make_pool();
  KvCache cache = random_cache(pool, 10, 1);
  const size_t lane_pages = 2;
  cache = must(erase(cache, select(cache, "layers=1 heads=0 rows=2-9")));
  cache = must(overwrite(cache, slice_of(cache, "layers=1 heads=0 rows=0-1"), std::vector<int>{0, 1}));
  EXPECT_EQ(cache.lanes().table(Part::kKey, 2).spans().size(), 1U);
  cache = must(erase(cache, select(cache, "layers=1 heads=0")));
  EXPECT_EQ(cache.lanes().table(Part::kKey, 2).spans().size(), 0U);
  EXPECT_EQ(pool->pages_held(), 2U * kShape.lanes() - lane_pages);
}

TEST(Cache, WhatWasGrownIsTakenBack) {
  const auto pool = make_pool();
  KvCache cache = must(shift(random_cache(pool, 40, 1), std::vector<int>{39}, 5));
  const Rows before = cache.rows();
  const std::vector<float> keys = load_lane(cache.lanes(), Part::kKey, 3).data;
  const size_t held = pool->pages_held();
  ASSERT_TRUE(cache.grow(std::vector<TokenId>(70, 7)).ok());
  for (int times = 0; times < 2; ++times) {
    cache.shrink(40);
    EXPECT_EQ(cache.rows().tokens, before.tokens);
    EXPECT_EQ(cache.rows().positions, before.positions);
    EXPECT_EQ(cache.rows().origins, before.origins);
    EXPECT_EQ(cache.next_position(), 40);
    EXPECT_EQ(pool->pages_held(), held);
    EXPECT_EQ(load_lane(cache.lanes(), Part::kKey, 3).data, keys);
  }
}

// ---- errors leave everything as it was ----

TEST(Pool, ExhaustionNamesBytesAndChangesNothing) {
  const auto pool = make_pool(CacheType::kF16, size_t{60} * 4096);
  KvCache cache = random_cache(pool, 33, 1);
  const size_t held = pool->pages_held();
  std::vector<TokenId> tokens(size_t{200});
  const Status status = cache.grow(tokens);
  ASSERT_FALSE(status.ok());
  for (const char* word : {"245760", "98304"})
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  EXPECT_EQ(cache.size(), 33);
  EXPECT_EQ(cache.next_position(), 33);
  const KvCache fork = random_cache(pool, 33, 2);
  EXPECT_FALSE(scale(cache, 2, select(cache, "")).ok());
  EXPECT_FALSE(noise(slice_of(cache), NoiseKind::kUnit, 1).ok());
  const std::string exhausted = "cache pool exhausted: 98304 bytes wanted, 196608 held, 245760 allowed";
  EXPECT_EQ(error_of(noise(cache, select(cache, ""), NoiseKind::kZero, 1)), exhausted);
  {
    const auto fill = [&] {
      return fill_missing(slice_of(cache, "parts=k"), slice_of(cache), NoiseKind::kZero, 1);
    };
    const KvSlice filled = must(fill());  // with the last pages
    EXPECT_EQ(error_of(fill()), "cache pool exhausted: 49152 bytes wanted, 245760 held, 245760 allowed");
  }
  const std::vector<TokenId> ids(33);
  const std::vector<float> rows(ids.size() * static_cast<size_t>(row_width(kShape)));
  EXPECT_EQ(error_of(cache_of_rows(pool, kShape, ids, rows.data(), "rows")), exhausted);
  EXPECT_EQ(pool->pages_held(), 2 * held);
}

// Three rows of twos.
KvCache cache_of_twos(const std::shared_ptr<PagePool>& pool) {
  const std::vector<float> rows(size_t{3} * row_width(kShape), 2.0F);
  return must(cache_of_rows(pool, kShape, std::vector<TokenId>(3), rows.data(), "twos"));
}

TEST(Pages, WhatTheyCannotHoldIsRefused) {
  const auto refused = [](const std::string& where, const std::string& value, const char* type) {
    return where + " becomes " + value + ", beyond what pages of type " + type + " can hold";
  };
  const auto pool = make_pool(CacheType::kF16);
  const KvCache cache = cache_of_twos(pool);
  const size_t held = pool->pages_held();
  const Selection all = select(cache, "");
  const Selection last = select(cache, "layers=2 heads=1 rows=1-2 parts=v");
  EXPECT_EQ(error_of(scale(cache, -40000, all)), refused("layer 0 head 0: K", "-80000", "f16"));
  EXPECT_EQ(error_of(scale(cache, 40000, last)), refused("layer 2 head 1: V", "80000", "f16"));
  EXPECT_EQ(error_of(scale(cache, 32760, last)), refused("layer 2 head 1: V", "65520", "f16"));
  EXPECT_EQ(error_of(mix(cache, must(scale(cache, 3, all)), 1e5, last)),
            refused("layer 2 head 1: V", "400002", "f16"));
  EXPECT_EQ(error_of(add(cache, {{}, std::vector<float>(64, NAN)}, 1, last)),
            refused("layer 2 head 1: V", "nan", "f16"));
  std::vector<float> spike(64);
  spike[7] = -1e5;
  EXPECT_EQ(error_of(add(cache, {spike, {}}, 1, select(cache, "layers=1 heads=0 rows=2"))),
            refused("layer 1 head 0: K", "-99998", "f16"));
  // Norms that are one element's.
  const KvCache peaks = must(add(must(scale(cache, 0, all)), {spike, spike}, 0.5, all));
  const KvCache strong = must(scale(cache, 30000, all));
  for (const NormTarget by : {NormTarget::kRow, NormTarget::kLaneMean})
    EXPECT_EQ(error_of(match_norm(peaks, strong, by, last)), refused("layer 2 head 1: V", "-480000", "f16"));
  EXPECT_EQ(
      error_of(noise(must(add(strong, {spike, spike}, 1, all)), last, NoiseKind::kMatched, 1)).substr(0, 33),
      "row 0: layer 2 head 1: V becomes ");
  EXPECT_EQ(pool->pages_held(), 3 * held);     // peaks and strong, and nothing of what was refused
  EXPECT_TRUE(scale(cache, 32759, all).ok());  // rounds to the largest, 65504

  const std::vector<float> rows(size_t{2} * row_width(kShape), 1e5F);
  EXPECT_EQ(error_of(cache_of_rows(pool, kShape, std::vector<TokenId>(2), rows.data(), "x")),
            "row 0: " + refused("layer 0 head 0: K", "100000", "f16"));
  for (const auto& [type, name] : {std::pair{CacheType::kF32, "f32"}, std::pair{CacheType::kQ8, "q8"}}) {
    const KvCache large = must(scale(cache_of_twos(make_pool(type)), 1e38, all));
    EXPECT_EQ(error_of(scale(large, 10, last)), refused("layer 2 head 1: V", "inf", name));
  }
}

TEST(Pool, BelowOnePageIsNone) {
  EXPECT_EQ(error_of(PagePool::create(CacheType::kF16, 64, 4095)),
            "cache pool: a budget of 4095 bytes is below one page (4096 bytes)");
}

// A device that does nothing and says so.
class FailingDevice final : public FarMemory, public RowComputer {
 public:
  FailingDevice() : FarMemory(size_t{1} << 20) {}
  RowComputer* computer() override { return this; }
  Result<bool> change_rows(const KvPagesView&, const RowChange&, std::span<const RowRun>) override {
    return Status::error("the device is lost");
  }
  Status row_norms(const KvPagesView&, std::span<const RowRun>, std::span<double>) override {
    return Status::error("the norms are lost");
  }
  void copy_rows(const KvPagesView&, std::span<const RowCopy> copies) override { copied += copies.size(); }
  size_t copied = 0;
};

TEST(Pool, AnErrorOfTheDeviceLeavesTheCacheAsItWas) {
  auto memory = std::make_unique<FailingDevice>();
  const FailingDevice& device = *memory;
  const auto pool =
      must(PagePool::create(CacheType::kF16, kShape.head_dim, std::move(memory), size_t{1} << 20));
  const KvCache cache = random_cache(pool, 40, 1);
  const std::vector<float> before = load_lane(cache.lanes(), Part::kKey, 3).data;
  const size_t held = pool->pages_held();
  EXPECT_EQ(error_of(scale(cache, 2, select(cache, ""))), "the device is lost");
  EXPECT_EQ(error_of(match_norm(cache, cache, NormTarget::kLaneMean, select(cache, ""))),
            "the norms are lost");
  EXPECT_EQ(pool->pages_held(), held);
  EXPECT_EQ(load_lane(cache.lanes(), Part::kKey, 3).data, before);
  KvCache fork = cache.fork();
  const TokenId token = 1;
  ASSERT_TRUE(fork.grow(std::span(&token, 1)).ok());
  EXPECT_EQ(device.copied, 2U * kShape.lanes());  // the last rows are the device's to copy
}

TEST(Errors, SayWhatWasAskedAndWhatExists) {
  const auto pool = make_pool();
  const KvCache cache = random_cache(pool, 8, 1);
  const KvCache other(must(PagePool::create(CacheType::kF32, 32, size_t{1} << 20)), {3, 2, 32});
  EXPECT_EQ(error_of(insert(cache, slice_of(cache), 9, {})), "insert at slot 9: slots 0-8 exist");
  EXPECT_EQ(error_of(insert(cache, slice_of(cache), -1, {})), "insert at slot -1: slots 0-8 exist");
  EXPECT_NE(error_of(insert(other, slice_of(cache), 0, {})).find("3 layers x 2 KV heads x 64"),
            std::string::npos);
  EXPECT_NE(error_of(insert(cache, slice_of(cache, "parts=k"), 0, {})).find("fill the other half"),
            std::string::npos);
  const std::vector<KvSlice> behind = {slice_of(cache, "parts=k"), slice_of(cache, "parts=v")};
  EXPECT_EQ(error_of(to_cache(must(concat(behind)))),
            "layer 0 head 0 has 8 rows of K and 8 of V that are not the same; a row needs both: fill the "
            "other half "
            "with zero, noise, mean or a slice");
  EXPECT_NE(error_of(erase(cache, select(cache, "parts=v"))).find("half a row"), std::string::npos);
  EXPECT_NE(error_of(keep(cache, select(cache, "parts=k"))).find("half a row"), std::string::npos);
  const std::vector<int> twice = {1, 1};
  EXPECT_NE(error_of(overwrite(cache, slice_of(cache, "rows=0-1"), twice)).find("1 after 1"),
            std::string::npos);
  const std::vector<int> beyond = {1, 8};
  EXPECT_NE(error_of(overwrite(cache, slice_of(cache, "rows=0-1"), beyond)).find("0-7 exist"),
            std::string::npos);
  const std::vector<int> one = {1};
  EXPECT_NE(
      error_of(overwrite(cache, slice_of(cache, "rows=0-1"), one)).find("1 rows named for a slice of 2"),
      std::string::npos);
  EXPECT_NE(error_of(truncate(cache, 9)).find("the cache has 8"), std::string::npos);
  EXPECT_NE(error_of(truncate(cache, -1)).find("the cache has 8"), std::string::npos);
  EXPECT_NE(error_of(shift(cache, select(cache, "").rows, INT32_MAX)).find("is out of range"),
            std::string::npos);
  EXPECT_NE(error_of(set_positions(cache, std::vector<int32_t>(7))).find("7 positions for 8 rows"),
            std::string::npos);
  EXPECT_NE(error_of(mix(cache, random_cache(pool, 7, 2), 0.5, select(cache, ""))).find("8 and 7 rows"),
            std::string::npos);
  EXPECT_NE(error_of(add(cache, {std::vector<float>(63), {}}, 1, select(cache, ""))).find("63 values"),
            std::string::npos);
  EXPECT_NE(error_of(match_norm(cache, KvCache(pool, kShape), NormTarget::kLaneMean, select(cache, "")))
                .find("no rows to take"),
            std::string::npos);
  EXPECT_FALSE(concat({}).ok());
}

TEST(Errors, OfTwoCachesThatDoNotFit) {
  const auto pool = make_pool();
  const KvCache cache = random_cache(pool, 8, 1);
  const Selection all = select(cache, "");
  const KvCache narrow(must(PagePool::create(CacheType::kF32, 32, size_t{1} << 20)), {3, 2, 32});
  const KvCache elsewhere = random_cache(make_pool(), 8, 1);
  const KvCache shorter = random_cache(pool, 7, 1);
  const KvCache ragged = must(erase(cache, select(cache, "layers=1 heads=1 rows=3")));
  const auto by_row = [&](const KvCache& a, const KvCache& to) {
    return error_of(match_norm(a, to, NormTarget::kRow, all));
  };
  const auto mixed = [&](const KvCache& a, const KvCache& b) { return error_of(mix(a, b, 0.5, all)); };
  const std::string shapes = "cache shapes differ: 3 layers x 2 KV heads x 64 and 3 x 2 x 32";
  const std::string pools = "the caches are of different page pools";
  const std::string one_alone = "row 3 of layer 1 head 1 is in one of the caches alone";
  EXPECT_EQ(mixed(cache, narrow), shapes);
  EXPECT_EQ(mixed(cache, elsewhere), pools);
  EXPECT_EQ(mixed(cache, shorter), "the caches have 8 and 7 rows; expected as many");
  EXPECT_EQ(mixed(cache, ragged), one_alone);
  EXPECT_EQ(mixed(ragged, cache), one_alone);
  EXPECT_EQ(by_row(cache, narrow), shapes);
  EXPECT_EQ(by_row(cache, elsewhere), pools);
  EXPECT_EQ(by_row(cache, shorter), "the caches have 8 and 7 rows; expected as many");
  EXPECT_EQ(by_row(cache, ragged), one_alone);
  EXPECT_EQ(by_row(ragged, cache), "no error");  // it has a row for each that is scaled
  EXPECT_EQ(error_of(match_norm(cache, elsewhere, NormTarget::kLaneMean, all)), pools);
  EXPECT_EQ(error_of(mix(cache, cache, std::nan(""), all)), "mix: alpha nan: expected a number");
  const KvSlice foreign = slice_of(elsewhere);
  const std::vector<KvSlice> two = {slice_of(cache), foreign};
  const std::string slices = "cache and slice are of different page pools";
  EXPECT_EQ(error_of(insert(cache, foreign, 0, {})), slices);
  EXPECT_EQ(error_of(overwrite(cache, foreign, all.rows)), slices);
  EXPECT_EQ(error_of(concat(two)), slices);
  EXPECT_EQ(error_of(erase(cache, select(cache, "parts=k"))),
            "erase: parts=k or parts=v alone would leave half a row; erase takes both");
  EXPECT_EQ(error_of(keep(cache, select(cache, "parts=v"))),
            "keep: parts=k or parts=v alone would leave half a row; keep takes both");
}

// Wherever a position would go beyond what it may be, nothing is done.
TEST(Errors, OfPositionsOutOfRange) {
  const auto pool = make_pool();
  const KvCache cache = random_cache(pool, 3, 1);
  const auto out_of_range = [](const std::string& position) {
    return "position " + position + " is out of range: positions go to +-1073741824";
  };
  using Kind = InsertPositions::Kind;
  const KvSlice slice = slice_of(cache);
  EXPECT_EQ(error_of(insert(cache, slice, 1, {Kind::kFrom, kMostPosition - 1})),
            "row 3: " + out_of_range("1073741825"));
  EXPECT_EQ(error_of(insert(cache, slice, 1, {Kind::kGap, kMostPosition / 2})),
            "row 4: " + out_of_range("1073741828"));
  EXPECT_EQ(error_of(insert(cache, slice, 3, {Kind::kGap, kMostPosition / 2})), out_of_range("1073741830"));
  EXPECT_EQ(error_of(set_positions(cache, std::vector<int32_t>{0, -kMostPosition - 1, 0})),
            "row 1: " + out_of_range("-1073741825"));
  const std::vector<int> all = {0, 1, 2};
  EXPECT_EQ(error_of(shift(cache, all, kMostPosition - 2)), out_of_range("1073741825"));  // the next one
  KvCache last = must(shift(cache, all, kMostPosition - 3));
  EXPECT_EQ(last.next_position(), kMostPosition);
  const TokenId token = 1;
  EXPECT_EQ(last.grow(std::span(&token, 1)).message(),
            "the cache's positions would go beyond what they may be");
  EXPECT_EQ(last.size(), 3);
  EXPECT_EQ(last.rows().tokens, cache.rows().tokens);
}

TEST(Errors, OfFill) {
  const auto pool = make_pool();
  const KvCache cache = random_cache(pool, 8, 1);
  const KvSlice keys = slice_of(cache, "parts=k");
  const auto fill = [&](const KvSlice& slice, const KvSlice& source) {
    return error_of(fill_missing(slice, source, std::nullopt, 1));
  };
  EXPECT_EQ(fill(keys, slice_of(cache, "rows=1-7")), "fill: slice and source differ in shape or rows");
  const KvCache flat(pool, {2, 2, 64});
  EXPECT_EQ(fill(slice_of(cache, "rows="), must(extract(flat, Selection::all(flat.shape(), 0)))),
            "fill: slice and source differ in shape or rows");
  EXPECT_EQ(fill(keys, slice_of(random_cache(make_pool(), 8, 1))),
            "fill: slice and source are of different page pools");
  EXPECT_EQ(fill(keys, slice_of(must(erase(cache, select(cache, "layers=1 heads=1 rows=0-2"))))),
            "fill: the source has 5 rows in layer 1 head 1 where 8 are missing");
  const KvCache first = must(erase(cache, select(cache, "layers=0 heads=1 rows=0")));
  const KvCache last = must(erase(cache, select(cache, "layers=0 heads=1 rows=7")));
  EXPECT_EQ(fill(slice_of(first, "parts=k"), slice_of(last)),
            "fill: the source has 7 rows in layer 0 head 1 where 7 are missing, and not the same");
}

TEST(Errors, PositionsText) {
  EXPECT_EQ(must(InsertPositions::parse("gap:12")).value, 12);
  EXPECT_EQ(must(InsertPositions::parse("from:-3")).value, -3);
  EXPECT_EQ(must(InsertPositions::parse("from:-1073741824")).value, -kMostPosition);
  EXPECT_EQ(error_of(InsertPositions::parse("from:1073741825")),
            "positions 'from:1073741825': expected follow, keep, overlap, gap:N or from:N");
  using Kind = InsertPositions::Kind;
  EXPECT_EQ(must(InsertPositions::parse("follow")).kind, Kind::kFollow);
  EXPECT_EQ(must(InsertPositions::parse("keep")).kind, Kind::kKeep);
  EXPECT_EQ(must(InsertPositions::parse("overlap")).kind, Kind::kOverlap);
  for (const char* bad : {"", "gap", "gap:", "gap:-1", "gap:1x", "from:99999999999", "follow:1", "Follow"})
    EXPECT_FALSE(InsertPositions::parse(bad).ok()) << bad;
}

// ---- arithmetic ----

TEST(MatchNorm, ByRowTakesTheNormOfTheRowAtTheSameSlot) {
  const auto pool = make_pool();
  const KvCache cache = random_cache(pool, 40, 1);
  const KvCache to = must(scale(random_cache(pool, 40, 2), 3, select(cache, "")));
  const KvCache zero = must(scale(cache, 0, select(cache, "rows=7")));
  const KvCache made = must(match_norm(zero, to, NormTarget::kRow, select(cache, "rows=5-35 parts=v")));
  for (int lane = 0; lane < kShape.lanes(); ++lane) {
    const LaneMatrix before = load_lane(zero.lanes(), Part::kValue, lane);
    const LaneMatrix wanted = load_lane(to.lanes(), Part::kValue, lane);
    const LaneMatrix after = load_lane(made.lanes(), Part::kValue, lane);
    for (int slot = 0; slot < 40; ++slot) {
      const bool changed = slot >= 5 && slot <= 35 && slot != 7;  // a row of zeros has no direction
      const LaneMatrix& like = changed ? wanted : before;
      EXPECT_NEAR(norm(after.row(slot), 64), norm(like.row(slot), 64), 1e-4) << slot;  // observed: 2e-6
    }
    EXPECT_EQ(load_lane(made.lanes(), Part::kKey, lane).data, load_lane(zero.lanes(), Part::kKey, lane).data);
  }
}

}  // namespace
}  // namespace kvfold::testing
