// Many caches over one small pool: a thousand of them forked, changed, saved, loaded and dropped at random.
// What does not fit is refused and changes nothing; nothing leaks; memory stays where it was.
//
// KVFOLD_SOAK_MINUTES=60 goes on for so long and holds the process' memory to less than 1 MB of growth (make
// soak).
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>

#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "engine/random.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

constexpr CacheShape kShape = {2, 2, 32};
constexpr size_t kCaches = 1000;
constexpr size_t kPages = 3000;

double resident_megabytes() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0;
  size_t resident = 0;
  file >> all >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

class Load : public ::testing::Test {
 protected:
  Load() {
    const size_t page = kv_page_bytes(CacheType::kF16, kShape.head_dim);
    pool_ = *PagePool::create(CacheType::kF16, kShape.head_dim, kPages * page);
    caches_.emplace_back(pool_, kShape);
  }

  KvCache& any() { return caches_[random_.below(caches_.size())]; }
  int below(int n) { return n <= 0 ? 0 : static_cast<int>(random_.below(static_cast<uint64_t>(n))); }
  // About half the rows, some lanes.
  Selection some(const KvCache& cache) {
    Selection selection = Selection::all(cache.shape(), cache.size());
    std::erase_if(selection.rows, [&](int) { return random_.below(2) == 0; });
    if (random_.below(2) == 0) selection.heads = {below(kShape.kv_heads)};
    return selection;
  }

  // A cache fed some rows, or an error.
  Result<KvCache> feed(const KvCache& cache) {
    KvCache longer = cache.fork();
    const std::vector<TokenId> tokens(1 + random_.below(60), 3);
    const int first = longer.size();
    KVFOLD_RETURN_IF_ERROR(longer.grow(tokens));
    for (const Part part : {Part::kKey, Part::kValue})
      for (int lane = 0; lane < kShape.lanes(); ++lane)
        for (int slot = first; slot < longer.size(); ++slot) {
          const auto place = longer.row_place(part, lane, slot);
          const std::vector<float> row(static_cast<size_t>(kShape.head_dim), static_cast<float>(slot));
          kv_store_row(CacheType::kF16, part, kShape.head_dim, pool_->write(place.page), place.row,
                       row.data());
        }
    return longer;
  }

  Result<KvCache> change(const KvCache& cache) {
    switch (random_.below(9)) {
      case 0:
        return feed(cache);
      case 1:
        return truncate(cache, below(cache.size() + 1));
      case 2: {
        const KvCache& other = any();
        KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(other, some(other)));
        return insert(cache, slice, below(cache.size() + 1), {});
      }
      case 3:
        return erase(cache, some(cache));
      case 4:
        return noise(cache, some(cache), NoiseKind::kMatched, random_.below(1000));
      case 5:
        return mix(cache, cache, 0.5, some(cache));
      case 6:
        return shift(cache, some(cache).rows, below(100) - 50);
      case 7:
        return keep(cache, some(cache));
      default:  // files are a hundred times as slow as the rest
        return random_.below(20) == 0 ? through_a_file(cache) : feed(cache);
    }
  }

  Result<KvCache> through_a_file(const KvCache& cache) {
    const CacheModelInfo model = {"0123456789abcdef", "llama", "load", 10000, RopePairing::kHalfSplit, 32};
    const std::string path = folder_.file("cache");
    KVFOLD_RETURN_IF_ERROR(save_cache(cache, model, path));
    return load_cache(path, model, kShape, pool_);
  }

  void step() {
    const KvCache& cache = any();
    const int size = cache.size();
    Result<KvCache> changed = size > 400 ? truncate(cache, size / 4) : change(cache);
    ++steps_;
    if (!changed.ok()) {
      ++refused_;
      EXPECT_NE(changed.status().message().find("cache pool exhausted"), std::string::npos)
          << changed.status().message();
    } else if (caches_.size() < kCaches) {
      caches_.push_back(std::move(*changed));
    } else {
      any() = std::move(*changed);
    }
    if (refused_ % 10 == 9 && !changed.ok())
      for (int i = 0; i < 100; ++i) any() = KvCache(pool_, kShape);
    EXPECT_LE(pool_->pages_held(), kPages);
  }

  TemporaryFolder folder_;
  Random random_{7};
  std::shared_ptr<PagePool> pool_;
  std::vector<KvCache> caches_;
  int64_t steps_ = 0;
  int64_t refused_ = 0;
};

TEST_F(Load, ThousandCachesAtThePoolsBudget) {
  for (int i = 0; i < 15'000 && !HasFailure(); ++i) step();
  EXPECT_EQ(caches_.size(), kCaches);
  EXPECT_GT(refused_, 20);
  EXPECT_GT(pool_->peak_pages(), kPages * 9 / 10);
  // What is held is what the caches name, no page more.
  caches_.clear();
  EXPECT_EQ(pool_->pages_held(), 0U);
}

TEST_F(Load, SoakAtBoundedMemory) {
  const char* text = std::getenv("KVFOLD_SOAK_MINUTES");
  if (text == nullptr) GTEST_SKIP() << "KVFOLD_SOAK_MINUTES says for how long (make soak)";
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto minutes = [&] { return std::chrono::duration<double>(Clock::now() - start).count() / 60; };
  const double wanted = std::atof(text);
  // A tenth of the time to warm up: every page of the pool is touched by then.
  while (minutes() < wanted / 10 && !HasFailure()) step();
  const double before = resident_megabytes();
  double most = before;
  while (minutes() < wanted && !HasFailure()) {
    for (int i = 0; i < 1000; ++i) step();
    most = std::max(most, resident_megabytes());
  }
  fmt::print("{} steps, {} refusals, {:.2f} MB after warm-up, {:.2f} MB at most\n", steps_, refused_, before,
             most);
  EXPECT_LT(most - before, 1);
  caches_.clear();
  EXPECT_EQ(pool_->pages_held(), 0U);
}

}  // namespace
}  // namespace kvfold::testing
