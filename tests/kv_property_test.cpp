// Random programs of cache operations, run on paged caches and on the dense model side by side: after every
// step each vector, position and origin is compared, and after every program each page is accounted for.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "engine/backends.h"
#include "engine/random.h"
#include "tests/dense_cache.h"
#include "tests/far_memory.h"
#include "tests/must.h"

namespace kvfold::testing {
namespace {

constexpr CacheShape kShape{3, 2, 4};
constexpr int kMostRows = 150;
constexpr int kCaches = 4;

struct Pair {
  KvCache paged;
  DenseCache dense;
};

constexpr size_t kFarBytes = size_t{1} << 20;

#if defined(KVFOLD_ON_DEVICE)
// All programs on the device of this backend, whose kernels change the rows.
std::shared_ptr<PagePool> make_pool(CacheType type, uint64_t /*seed*/) {
  static const std::shared_ptr<Backend> backend = must(make_backend(KVFOLD_ON_DEVICE, {}));
  return must(backend->make_pool(type, kShape.head_dim, kFarBytes));
}
constexpr int kPart = 4;
#else
// Every third program on pages that lie on a device, changed on the host.
std::shared_ptr<PagePool> make_pool(CacheType type, uint64_t seed) {
  if (seed % 3 != 0) return must(PagePool::create(type, kShape.head_dim, size_t{64} << 20));
  return must(PagePool::create(type, kShape.head_dim, std::make_unique<FarMemory>(kFarBytes), kFarBytes));
}
constexpr int kPart = 1;
#endif

class Program {
 public:
  Program(CacheType type, uint64_t seed) : type_(type), random_(seed), pool_(make_pool(type, seed)) {
    for (int i = 0; i < kCaches; ++i) pairs_.push_back({KvCache(pool_, kShape), DenseCache(kShape)});
  }

  // One operation on random arguments; its result replaces a random cache.
  void step() {
    if (random_.below(8) == 0) pool_->flush();
    Pair& from = pick();
    Pair result = from.dense.size() > kMostRows ? shrink(from) : apply(from);
    compare(result);
    rounded_ = false;
    compare(from);  // no operation changes what it is given
    pick() = std::move(result);
  }

  void check_pages() {
    std::map<PageId, uint32_t> spans;
    std::map<const PageTable*, bool> seen;
    for (const Pair& pair : pairs_)
      for (const Part part : {Part::kKey, Part::kValue})
        for (int lane = 0; lane < kShape.lanes(); ++lane) {
          const PageTable& table = pair.paged.lanes().table(part, lane);
          if (seen[&table]) continue;
          seen[&table] = true;
          for (const KvSpan& span : table.spans()) {
            ASSERT_GT(span.count, 0);
            ++spans[span.page];
          }
        }
    ASSERT_EQ(pool_->pages_held(), spans.size());
    for (const auto& [page, count] : spans) ASSERT_EQ(pool_->references(page), count) << "page " << page;
    pairs_.clear();
    ASSERT_EQ(pool_->pages_held(), 0U);
  }

 private:
  Pair& pick() { return pairs_[random_.below(kCaches)]; }
  int below(int n) { return static_cast<int>(random_.below(static_cast<uint64_t>(n))); }

  std::vector<int> subset(int n, bool contiguous) {
    std::vector<int> out;
    if (n == 0) return out;
    if (contiguous) {
      const int first = below(n);
      const int last = first + below(n - first);
      for (int i = first; i <= last; ++i) out.push_back(i);
    } else {
      for (int i = 0; i < n; ++i)
        if (below(2) == 0) out.push_back(i);
    }
    return out;
  }

  Selection select(int rows, bool both_parts) {
    Selection s = Selection::all(kShape, rows);
    if (below(2) == 0) s.layers = subset(kShape.layers, below(2) == 0);
    if (below(2) == 0) s.heads = subset(kShape.kv_heads, below(2) == 0);
    if (below(4) != 0) s.rows = subset(rows, below(2) == 0);
    if (!both_parts && below(3) == 0) (below(2) == 0 ? s.keys : s.values) = false;
    return s;
  }

  InsertPositions positions() {
    using Kind = InsertPositions::Kind;
    constexpr Kind kKinds[] = {Kind::kFollow, Kind::kKeep, Kind::kOverlap, Kind::kGap, Kind::kFrom};
    return {kKinds[below(5)], below(40)};
  }

  // Multiples of 1/8 below 16 in magnitude: exact in f16 and f32.
  float value() { return static_cast<float>(below(255) - 127) / 8; }

  Pair feed(Pair out) {
    std::vector<TokenId> tokens(static_cast<size_t>(1 + below(40)));
    for (TokenId& t : tokens) t = below(1000);
    const int first = out.paged.size();
    EXPECT_TRUE(out.paged.grow(tokens).ok());
    std::vector<float> row(kShape.head_dim);
    for (size_t i = 0; i < tokens.size(); ++i) {
      const int slot = first + static_cast<int>(i);
      out.dense.add_row({tokens[i], out.dense.next_position++, "fed", slot, 0});
      for (int part = 0; part < 2; ++part)
        for (int lane = 0; lane < kShape.lanes(); ++lane) {
          for (float& x : row) x = value();
          const auto place = out.paged.row_place(static_cast<Part>(part), lane, slot);
          kv_store_row(type_, static_cast<Part>(part), kShape.head_dim, out.paged.pool()->write(place.page),
                       place.row, row.data());
          out.dense.at(part, lane, slot) = DenseVector(row.begin(), row.end());
        }
    }
    rounded_ = true;
    return out;
  }

  Pair shrink(const Pair& from) {
    const int size = below(40);
    return {must(truncate(from.paged, size)), dense_truncate(from.dense, size)};
  }

  Pair insert_some(const Pair& from) {
    const Pair& other = pick();
    const Selection s = select(other.paged.size(), true);
    const int at = below(from.paged.size() + 1);
    const InsertPositions where = positions();
    return {must(insert(from.paged, must(extract(other.paged, s)), at, where)),
            dense_insert(from.dense, dense_extract(other.dense, s), at, where)};
  }

  // K alone, or V alone, and the other half made up.
  Pair insert_half(const Pair& from) {
    const Pair& other = pick();
    const Selection both = select(other.paged.size(), true);
    Selection half = both;
    const int missing = below(2);
    (missing == 0 ? half.keys : half.values) = false;
    std::optional<NoiseKind> kind;
    if (below(3) != 0) kind = below(2) == 0 ? NoiseKind::kZero : NoiseKind::kMean;
    DenseCache slice = dense_extract(other.dense, both);
    for (int row = 0; row < slice.size(); ++row)
      for (int lane = 0; lane < kShape.lanes(); ++lane)
        if (slice.at(missing, lane, row))
          slice.rows[row].operations |= static_cast<uint32_t>(Operation::kFill);
    if (kind)
      for (int lane = 0; lane < kShape.lanes(); ++lane)
        dense_constant(slice, missing, lane, all(slice), *kind);
    rounded_ = kind == NoiseKind::kMean;
    const KvSlice filled =
        must(fill_missing(must(extract(other.paged, half)), must(extract(other.paged, both)), kind, 1));
    const int at = below(from.paged.size() + 1);
    const InsertPositions where = positions();
    return {must(insert(from.paged, filled, at, where)), dense_insert(from.dense, slice, at, where)};
  }
  static std::vector<int> all(const DenseCache& cache) {
    std::vector<int> rows(static_cast<size_t>(cache.size()));
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }

  // The rows of a lane that it holds, as zeros or as their mean.
  static void dense_constant(DenseCache& cache, int part, int lane, const std::vector<int>& rows,
                             NoiseKind kind) {
    DenseVector mean(kShape.head_dim, 0);
    int held = 0;
    for (const int row : rows)
      if (const auto& v = cache.at(part, lane, row)) {
        ++held;
        for (int d = 0; d < kShape.head_dim; ++d) mean[d] += (*v)[d];
      }
    for (double& x : mean) x = kind == NoiseKind::kZero || held == 0 ? 0 : x / held;
    for (const int row : rows)
      if (auto& v = cache.at(part, lane, row)) v = mean;
  }

  // Zeros and means are what the dense model computes. Of what is random the dense model takes the vectors
  // over, and checks what does not depend on chance: norms of kMatched; kPermuted makes the same set of rows.
  Pair noise_some(const Pair& from) {
    constexpr NoiseKind kKinds[] = {NoiseKind::kUnit,     NoiseKind::kMatched, NoiseKind::kChannel,
                                    NoiseKind::kPermuted, NoiseKind::kZero,    NoiseKind::kMean};
    const NoiseKind kind = kKinds[below(6)];
    const Selection s = select(from.paged.size(), false);
    Pair out{must(noise(from.paged, s, kind, random_.below(1000))), from.dense};
    for (int part = 0; part < 2; ++part)
      for (const int layer : s.layers)
        for (const int head : s.heads) {
          if (!(part == 0 ? s.keys : s.values)) continue;
          const int lane = layer * kShape.kv_heads + head;
          for (const int row : s.rows)
            if (from.dense.at(part, lane, row))
              out.dense.rows[row].operations |= static_cast<uint32_t>(Operation::kNoise);
          if (kind == NoiseKind::kZero || kind == NoiseKind::kMean) {
            dense_constant(out.dense, part, lane, s.rows, kind);
          } else {
            take_over(out, part, lane, s.rows, kind);
          }
        }
    rounded_ = true;
    return out;
  }

  void take_over(Pair& pair, int part, int lane, const std::vector<int>& rows, NoiseKind kind) {
    std::vector<DenseVector> before, after;
    std::vector<float> made(kShape.head_dim);
    for (const int row : rows) {
      auto& v = pair.dense.at(part, lane, row);
      if (!v) continue;
      before.push_back(*v);
      pair.paged.lanes().table(static_cast<Part>(part), lane).load(static_cast<Part>(part), row, made.data());
      v->assign(made.begin(), made.end());
      after.push_back(*v);
      if (kind == NoiseKind::kMatched) {
        EXPECT_NEAR(length(*v), length(before.back()), 2 * kShape.head_dim * tolerance(*v));
      }
    }
    // q8 rows that are stored anew may move within their scale, and so trade places in the order below.
    if (kind != NoiseKind::kPermuted || type_ == CacheType::kQ8) return;
    std::ranges::sort(before);
    std::ranges::sort(after);
    EXPECT_EQ(before, after);
  }
  static double length(const DenseVector& v) {
    double sum = 0;
    for (const double x : v) sum += x * x;
    return std::sqrt(sum);
  }

  // Rows of another cache over rows of this one, in the lanes that hold them.
  Pair overwrite_some(const Pair& from) {
    const Pair& other = pick();
    const Selection s = select(std::min(other.paged.size(), from.paged.size()), false);
    std::vector<int> rows;
    const int room = from.paged.size() - static_cast<int>(s.rows.size());
    const int move = s.rows.empty() || room == 0 ? 0 : below(room + 1);
    for (size_t i = 0; i < s.rows.size(); ++i) rows.push_back(static_cast<int>(i) + move);
    const DenseCache slice = dense_extract(other.dense, s);
    bool fits = true;
    for (int lane = 0; lane < 2 * kShape.lanes(); ++lane)
      for (size_t i = 0; i < rows.size(); ++i)
        fits &= !slice.vectors[lane][i] || from.dense.vectors[lane][rows[i]];
    Result<KvCache> paged = overwrite(from.paged, must(extract(other.paged, s)), rows);
    EXPECT_EQ(paged.ok(), fits);
    if (!fits) return from;
    return {must(std::move(paged)), dense_overwrite(from.dense, slice, rows)};
  }

  Pair mix_some(const Pair& from) {
    const Pair& other = pick();
    const Selection s = select(from.paged.size(), false);
    const double alpha = below(5) * 0.25;
    bool fits = other.paged.size() == from.paged.size();
    for (int lane = 0; fits && lane < kShape.lanes(); ++lane)
      for (const int row : s.rows) {
        const bool selected = std::count(s.layers.begin(), s.layers.end(), lane / kShape.kv_heads) > 0 &&
                              std::count(s.heads.begin(), s.heads.end(), lane % kShape.kv_heads) > 0;
        fits &=
            !selected || from.dense.at(0, lane, row).has_value() == other.dense.at(0, lane, row).has_value();
      }
    Result<KvCache> paged = mix(from.paged, other.paged, alpha, s);
    EXPECT_EQ(paged.ok(), fits);
    if (!fits) return from;
    rounded_ = alpha != 0;
    return {must(std::move(paged)), dense_mix(from.dense, other.dense, alpha, s)};
  }

  Pair arithmetic(const Pair& from) {
    const Selection s = select(from.paged.size(), false);
    rounded_ = true;
    if (below(2) == 0) {
      const double factor = (below(9) - 4) * 0.3;
      return {must(scale(from.paged, factor, s)), dense_scale(from.dense, factor, s)};
    }
    SteeringVectors vectors;
    for (std::vector<float>* v : {&vectors.keys, &vectors.values}) {
      const int kind = below(3);
      v->resize(kind == 0 ? 0 : kind == 1 ? kShape.head_dim : kShape.head_dim * kShape.lanes());
      for (float& x : *v) x = value();
    }
    return {must(add(from.paged, vectors, 0.5, s)), dense_add(from.dense, vectors, 0.5, s)};
  }

  Pair match(const Pair& from) {
    const Selection s = select(from.paged.size(), false);
    rounded_ = true;
    return {must(match_norm(from.paged, from.paged, NormTarget::kLaneMean, all_full(from) ? s : none())),
            dense_match_norm(from.dense, from.dense, NormTarget::kLaneMean, all_full(from) ? s : none())};
  }
  static Selection none() { return {{}, {}, {}, true, true}; }
  // Every lane has a row, so that every lane has a mean norm.
  static bool all_full(const Pair& pair) {
    for (int lane = 0; lane < kShape.lanes(); ++lane)
      if (pair.paged.lanes().table(Part::kKey, lane).rows() == 0) return false;
    return true;
  }

  Pair shift_some(const Pair& from) {
    const int delta = below(200) - 100;
    if (below(2) == 0) {
      std::vector<int32_t> to(static_cast<size_t>(from.paged.size()));
      for (int32_t& p : to) p = below(100);
      return {must(set_positions(from.paged, to)), dense_set_positions(from.dense, to)};
    }
    const std::vector<int> rows = select(from.paged.size(), true).rows;
    return {must(shift(from.paged, rows, delta)), dense_shift(from.dense, rows, delta)};
  }

  Pair join(const Pair& from) {
    const Pair& other = pick();
    const Selection a = select(from.paged.size(), true);
    const Selection b = select(other.paged.size(), true);
    const std::vector<KvSlice> slices = {must(extract(from.paged, a)), must(extract(other.paged, b))};
    DenseCache dense = dense_concat({dense_extract(from.dense, a), dense_extract(other.dense, b)});
    dense.next_position = 0;
    for (const DenseRow& row : dense.rows)
      dense.next_position = std::max(dense.next_position, row.position + 1);
    return {must(to_cache(must(concat(slices)))), std::move(dense)};
  }

  // Rows that were just fed, the last of them moved to the front, and then more: pages that no other cache
  // holds, in which rows stand in another order than the slots'.
  Pair turn_around() {
    Pair fed = feed({KvCache(pool_, kShape), DenseCache(kShape)});
    const int front = below(fed.paged.size() + 1);
    Selection back = Selection::all(kShape, fed.paged.size());
    back.rows.erase(back.rows.begin(), back.rows.begin() + front);
    const InsertPositions where = positions();
    Pair turned = {must(insert(must(truncate(fed.paged, front)), must(extract(fed.paged, back)), 0, where)),
                   dense_insert(dense_truncate(fed.dense, front), dense_extract(fed.dense, back), 0, where)};
    fed = {KvCache(pool_, kShape), DenseCache(kShape)};
    return feed(std::move(turned));
  }

  Pair apply(const Pair& from) {
    rounded_ = false;
    switch (below(14)) {
      case 0:
        return feed(from);
      case 1:
        return feed(feed(from));  // the second into pages of its own
      case 2:
        return insert_some(from);
      case 3:
        return overwrite_some(from);
      case 4: {
        const Selection s = select(from.paged.size(), true);
        return {must(erase(from.paged, s)), dense_erase(from.dense, s)};
      }
      case 5: {
        const Selection s = select(from.paged.size(), true);
        return {must(keep(from.paged, s)), dense_keep(from.dense, s)};
      }
      case 6:
        return shift_some(from);
      case 7:
        return mix_some(from);
      case 8:
        return arithmetic(from);
      case 9:
        return match(from);
      case 10:
        return noise_some(from);
      case 11:
        return insert_half(from);
      case 12:
        return turn_around();
      default:
        return join(from);
    }
  }

  // Half a unit in the last place of what the pages hold, and the row's scale for q8.
  double tolerance(const DenseVector& row) const {
    double largest = 0;
    for (const double x : row) largest = std::max(largest, std::abs(x));
    if (type_ == CacheType::kQ8) return largest / 127 * 0.5001 + 1e-6;
    return largest * (type_ == CacheType::kF16 ? 0x1p-11 : 0x1p-24) + 1e-7;
  }

  // Vectors that were computed agree within rounding, and the dense model then takes the rounded ones; all
  // others are equal.
  void compare(Pair& pair) {
    const Rows& rows = pair.paged.rows();
    ASSERT_EQ(rows.size(), pair.dense.size());
    ASSERT_EQ(pair.paged.next_position(), pair.dense.next_position);
    for (int i = 0; i < rows.size(); ++i) {
      const DenseRow& row = pair.dense.rows[i];
      ASSERT_EQ(rows.tokens[i], row.token);
      ASSERT_EQ(rows.positions[i], row.position);
      ASSERT_EQ(rows.sources[rows.origins[i].source], row.source);
      ASSERT_EQ(rows.origins[i].row, row.source_row);
      ASSERT_EQ(operation_names(rows.origins[i].operations), operation_names(row.operations));
    }
    std::vector<float> found(kShape.head_dim);
    for (int part = 0; part < 2; ++part)
      for (int lane = 0; lane < kShape.lanes(); ++lane) {
        const PageTable& table = pair.paged.lanes().table(static_cast<Part>(part), lane);
        int held = 0;
        for (int slot = 0; slot < rows.size(); ++slot) {
          std::optional<DenseVector>& wanted = pair.dense.at(part, lane, slot);
          ASSERT_EQ(table.holds(slot), wanted.has_value()) << "lane " << lane << " slot " << slot;
          ASSERT_EQ(table.rows_before(slot), held);
          if (!wanted) continue;
          ++held;
          table.load(static_cast<Part>(part), slot, found.data());
          const double allowed = rounded_ ? tolerance(*wanted) : 0;
          for (int d = 0; d < kShape.head_dim; ++d)
            ASSERT_NEAR(found[d], (*wanted)[d], allowed) << "lane " << lane << " slot " << slot;
          wanted->assign(found.begin(), found.end());
        }
        ASSERT_EQ(table.rows(), held);
      }
  }

  CacheType type_;
  Random random_;
  std::shared_ptr<PagePool> pool_;
  std::vector<Pair> pairs_;
  bool rounded_ = false;  // the last operation computed vectors
};

class KvProperties : public ::testing::TestWithParam<CacheType> {};

// 175 programs of 200 steps for each of three types: 105,000 steps, and a quarter as many on a device. The
// sanitizers see the first of them: what they look for does not need as many, and each step costs them ten
// times as much.
TEST_P(KvProperties, PagedEqualsDense) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kPrograms = 20;
#else
  constexpr int kPrograms = 175;
#endif
  constexpr int kSteps = 200;
  for (uint64_t seed = 1; seed <= kPrograms / kPart; ++seed) {
    Program program(GetParam(), seed);
    for (int i = 0; i < kSteps; ++i) {
      program.step();
      ASSERT_FALSE(HasFatalFailure() || HasNonfatalFailure()) << "seed " << seed << ", step " << i;
    }
    program.check_pages();
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, KvProperties,
                         ::testing::Values(CacheType::kF16, CacheType::kF32, CacheType::kQ8),
                         [](const auto& type) {
                           return std::string(type.param == CacheType::kF16   ? "f16"
                                              : type.param == CacheType::kF32 ? "f32"
                                                                              : "q8");
                         });

}  // namespace
}  // namespace kvfold::testing
