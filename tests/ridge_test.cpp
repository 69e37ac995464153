// Fitting ridge projectors: against the normal equations in f64, and on relations that are known.
#include "engine/kv/ridge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/random.h"
#include "tests/signed_file.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

using ::testing::HasSubstr;

constexpr CacheShape kSource = {2, 1, 5};  // 20 wide
constexpr CacheShape kTarget = {3, 2, 2};  // 24 wide
constexpr int kIn = 20;
constexpr int kOut = 24;

// Texts of rows; y = x a + noise, with an `a` of the given rank, offsets, and very different scales.
struct Texts {
  std::vector<std::vector<float>> x, y;
  std::vector<std::vector<float>> weights;
  std::vector<float> a;  // [kIn][kOut]
};

Texts make_texts(int count, int rank, double noise, uint64_t seed) {
  Random random(seed);
  Texts out;
  std::vector<double> left(static_cast<size_t>(kIn) * rank);
  std::vector<double> right(static_cast<size_t>(rank) * kOut);
  for (double& v : left) v = random.gaussian();
  for (double& v : right) v = random.gaussian();
  out.a.resize(static_cast<size_t>(kIn) * kOut);
  for (int i = 0; i < kIn; ++i)
    for (int j = 0; j < kOut; ++j) {
      double sum = 0;
      for (int k = 0; k < rank; ++k) sum += left[i * rank + k] * right[k * kOut + j];
      out.a[i * kOut + j] = static_cast<float>(sum);
    }
  for (int t = 0; t < count; ++t) {
    const int rows = 1 + static_cast<int>(random.below(7));
    std::vector<float> x;
    std::vector<float> y;
    std::vector<float> w;
    for (int r = 0; r < rows; ++r) {
      // Dimensions of scales from 1/8 to 128, far from zero.
      for (int i = 0; i < kIn; ++i)
        x.push_back(static_cast<float>((random.gaussian() + 3) * std::exp2(i % 11 - 3)));
      for (int j = 0; j < kOut; ++j) {
        double sum = 40 * j + noise * random.gaussian();
        for (int i = 0; i < kIn; ++i) sum += x[r * kIn + i] * std::exp2(3 - i % 11) * out.a[i * kOut + j];
        y.push_back(static_cast<float>(sum));
      }
      w.push_back(static_cast<float>(0.25 + random.uniform()));
    }
    out.x.push_back(x);
    out.y.push_back(y);
    out.weights.push_back(w);
  }
  return out;
}

RidgeSums sums_of(const Texts& texts, bool weighted, ThreadPool& threads) {
  RidgeSums sums(kSource, kTarget);
  for (size_t t = 0; t < texts.x.size(); ++t)
    sums.add(texts.x[t].data(), texts.y[t].data(), static_cast<int>(texts.x[t].size() / kIn),
             weighted ? texts.weights[t].data() : nullptr, threads);
  sums.flush(threads);
  return sums;
}

// x := g^-1 b by elimination with pivots, g [n][n], b [n][m].
void solve(std::vector<double>& g, std::vector<double>& b, int n, int m) {
  for (int p = 0; p < n; ++p) {
    int best = p;
    for (int i = p + 1; i < n; ++i)
      if (std::abs(g[i * n + p]) > std::abs(g[best * n + p])) best = i;
    for (int j = 0; j < n; ++j) std::swap(g[p * n + j], g[best * n + j]);
    for (int j = 0; j < m; ++j) std::swap(b[p * m + j], b[best * m + j]);
    for (int i = 0; i < n; ++i) {
      if (i == p) continue;
      const double f = g[i * n + p] / g[p * n + p];
      for (int j = 0; j < n; ++j) g[i * n + j] -= f * g[p * n + j];
      for (int j = 0; j < m; ++j) b[i * m + j] -= f * b[p * m + j];
    }
  }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < m; ++j) b[i * m + j] /= g[i * n + i];
}

// The ridge's prediction for one x, from the normal equations of centred rows in units of the deviations that
// `scale` [kIn] inverts.
std::vector<double> expected(const Texts& texts, bool weighted, const std::vector<float>& scale,
                             double lambda, const float* at) {
  double n = 0;
  std::vector<double> mx(kIn);
  std::vector<double> my(kOut);
  const auto each = [&](const auto& work) {
    for (size_t t = 0; t < texts.x.size(); ++t)
      for (size_t r = 1; r < texts.x[t].size() / kIn; ++r)
        work(&texts.x[t][r * kIn], &texts.y[t][r * kOut], weighted ? texts.weights[t][r] : 1.0F);
  };
  each([&](const float* x, const float* y, double w) {
    n += w;
    for (int i = 0; i < kIn; ++i) mx[i] += w * x[i];
    for (int j = 0; j < kOut; ++j) my[j] += w * y[j];
  });
  for (double& v : mx) v /= n;
  for (double& v : my) v /= n;
  std::vector<double> g(static_cast<size_t>(kIn) * kIn);
  std::vector<double> b(static_cast<size_t>(kIn) * kOut);
  each([&](const float* x, const float* y, double w) {
    for (int i = 0; i < kIn; ++i) {
      const double xi = (x[i] - mx[i]) * scale[i];
      for (int j = 0; j < kIn; ++j) g[i * kIn + j] += w * xi * (x[j] - mx[j]) * scale[j];
      for (int j = 0; j < kOut; ++j) b[i * kOut + j] += w * xi * (y[j] - my[j]);
    }
  });
  for (int i = 0; i < kIn; ++i) g[i * kIn + i] += lambda * n;
  solve(g, b, kIn, kOut);
  std::vector<double> out = my;
  for (int j = 0; j < kOut; ++j)
    for (int i = 0; i < kIn; ++i) out[j] += (at[i] - mx[i]) * scale[i] * b[i * kOut + j];
  return out;
}

std::vector<float> apply(ProjectorData data, const std::vector<float>& x, ThreadPool& threads) {
  auto projector = make_projector(std::move(data));
  EXPECT_TRUE(projector.ok());
  std::vector<float> y(x.size() / kIn * kOut);
  projector.value()->apply(x.data(), static_cast<int>(x.size() / kIn), false, y.data(), threads);
  return y;
}

TEST(Ridge, SolvesTheNormalEquations) {
  ThreadPool threads(2);
  const Texts texts = make_texts(500, kIn, 2, 1);  // more rows than a batch
  const std::vector<float> at = make_texts(1, kIn, 2, 2).x[0];
  for (const bool weighted : {false, true})
    for (const double lambda : {1e-4, 1e-2, 1.0}) {
      const RidgeSums sums = sums_of(texts, weighted, threads);
      EXPECT_EQ(sums.texts(), 500);
      const auto solution = RidgeSolution::solve(sums, lambda, threads);
      ASSERT_TRUE(solution.ok());
      const ProjectorData data = solution.value().whole();
      const std::vector<float> found = apply(data, at, threads);
      const std::vector<double> wanted =
          expected(texts, weighted, data.tensors.at("ridge.scale_in").data, lambda, at.data());
      // Values are up to 1,000 or so; observed 3e-6 of that.
      for (int j = 0; j < kOut; ++j)
        EXPECT_NEAR(found[j], wanted[j], 3e-5 * (100 + std::abs(wanted[j]))) << lambda;
    }
}

TEST(Ridge, FindsALinearRelationAndItsRank) {
  ThreadPool threads(2);
  const Texts texts = make_texts(600, 3, 0, 3);
  const RidgeSums sums = sums_of(texts, false, threads);
  const auto solution = RidgeSolution::solve(sums, 1e-6, threads);
  ASSERT_TRUE(solution.ok());
  for (const double share : solution.value().explained()) EXPECT_NEAR(share, 1, 1e-4);  // observed 3e-6
  const Texts other = make_texts(4, 3, 0, 3);                                           // the same relation
  for (const RidgeMetric metric : {RidgeMetric::kDimensions, RidgeMetric::kLanes}) {
    const auto three = solution.value().reduced(3, metric, threads);
    const auto two = solution.value().reduced(2, metric, threads);
    ASSERT_TRUE(three.ok());
    ASSERT_TRUE(two.ok());
    const std::vector<float> right = apply(three.value(), other.x[0], threads);
    const std::vector<float> wrong = apply(two.value(), other.x[0], threads);
    double error = 0;
    double lower = 0;
    for (size_t i = 0; i < right.size(); ++i) {
      error = std::max(error, static_cast<double>(std::abs(right[i] - other.y[0][i])));
      lower = std::max(lower, static_cast<double>(std::abs(wrong[i] - other.y[0][i])));
    }
    EXPECT_LT(error, 0.05);  // observed 0.004; deviations are about 15
    EXPECT_GT(lower, 1);
  }
}

TEST(Ridge, ReductionIsTheBestOfItsRank) {
  // Against the spectrum: with full-rank noise, the reduced fit's error grows by what the dropped directions
  // hold, and no random direction added to the dropped ones does better.
  ThreadPool threads(1);
  const Texts texts = make_texts(400, kIn, 1, 5);
  const RidgeSums sums = sums_of(texts, false, threads);
  const auto solution = RidgeSolution::solve(sums, 1e-5, threads);
  ASSERT_TRUE(solution.ok());
  const auto error = [&](int rank) {
    const auto reduced = solution.value().reduced(rank, RidgeMetric::kDimensions, threads);
    EXPECT_TRUE(reduced.ok());
    const std::vector<float>& scale = reduced.value().tensors.at("ridge.scale_out").data;
    double sum = 0;
    for (size_t t = 0; t < texts.x.size(); ++t) {
      const std::vector<float> y = apply(reduced.value(), texts.x[t], threads);
      for (size_t i = kOut; i < y.size(); ++i) sum += std::pow((y[i] - texts.y[t][i]) / scale[i % kOut], 2);
    }
    return sum;
  };
  double last = error(1);
  for (const int rank : {2, 4, 8, 16, 20}) {
    const double now = error(rank);
    EXPECT_LT(now, last);
    last = now;
  }
}

TEST(Ridge, FirstRowsAreApart) {
  ThreadPool threads(1);
  Texts texts = make_texts(50, 3, 0, 6);
  const RidgeSums before = sums_of(texts, false, threads);
  // What first rows hold changes the mean of first rows alone.
  for (auto& x : texts.x) std::fill_n(x.begin(), kIn, 1e6F);
  for (auto& y : texts.y) std::fill_n(y.begin(), kOut, 7.0F);
  const RidgeSums after = sums_of(texts, false, threads);
  const ProjectorData a = RidgeSolution::solve(before, 0.01, threads).value().whole();
  const ProjectorData b = RidgeSolution::solve(after, 0.01, threads).value().whole();
  EXPECT_EQ(a.tensors.at("ridge.weight").data, b.tensors.at("ridge.weight").data);
  for (const float x : b.tensors.at("ridge.first").data) EXPECT_EQ(x, 7);
}

// What never varied keeps its size, and says nothing.
TEST(Ridge, ADimensionThatNeverVariedStays) {
  ThreadPool threads(1);
  Texts texts = make_texts(60, kIn, 1, 10);
  for (std::vector<float>& x : texts.x)
    for (size_t i = 4; i < x.size(); i += kIn) x[i] = 7;
  RidgeSums sums = sums_of(texts, false, threads);
  sums.flush(threads);  // nothing is left to be added
  const ProjectorData made = RidgeSolution::solve(sums, 0.01, threads).value().whole();
  EXPECT_EQ(made.tensors.at("ridge.mean_in").data[4], 7);
  EXPECT_EQ(made.tensors.at("ridge.scale_in").data[4], 1);
  for (int j = 0; j < kOut; ++j) EXPECT_EQ(made.tensors.at("ridge.weight").data[j * kIn + 4], 0);
}

Result<RidgeSums> load_sums(const std::string& path, const CacheShape& source, const CacheShape& target) {
  std::string identity;
  Result<RidgeSums> sums = RidgeSums::load(path, source, target, &identity);
  EXPECT_EQ(identity, sums.ok() ? "these" : identity);
  return sums;
}

TEST(Ridge, SumsComeBackFromAFile) {
  const TemporaryFolder folder;
  ThreadPool threads(2);
  const RidgeSums sums = sums_of(make_texts(60, kIn, 1, 7), false, threads);
  ASSERT_TRUE(sums.save(folder.file("sums"), "these").ok());
  const auto loaded = load_sums(folder.file("sums"), kSource, kTarget);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(
      RidgeSolution::solve(sums, 0.01, threads).value().whole().tensors.at("ridge.weight").data,
      RidgeSolution::solve(loaded.value(), 0.01, threads).value().whole().tensors.at("ridge.weight").data);
  EXPECT_THAT(load_sums(folder.file("sums"), kTarget, kSource).status().message(),
              HasSubstr("of another pair of models"));
  EXPECT_EQ(sums.save(folder.file("absent/sums"), "").message(),
            folder.file("absent/sums") + ": cannot create: No such file or directory");
  EXPECT_EQ(load_sums(folder.file("absent"), kSource, kTarget).status().message(),
            folder.file("absent") + ": cannot open: No such file or directory");
  EXPECT_THAT(load_sums(folder.write("text", "no safetensors"), kSource, kTarget).status().message(),
              HasSubstr("text: header length"));
}

const Lie kSumsLies[] = {
    metadata_lie("version_2", "kvfold_ridge_sums", "2"),
    metadata_lie("rows_negative", "rows", "-1"),
    metadata_lie("rows_text", "rows", "many"),
    metadata_lie("texts_2_63", "texts", "9223372036854775808"),
    metadata_lie("texts_negative", "texts", "-5"),
    metadata_lie("weight_nan", "weight", "nan"),
    metadata_lie("weight_infinite", "weight", "inf"),
    metadata_lie("weight_negative", "weight", "-1"),
    metadata_lie("weight_text", "weight", "heavy", {"found 'heavy', expected a number"}),
    metadata_lie("weight_and_more", "weight", "1 kg", {"found '1 kg'"}),
    metadata_lie("weight_empty", "weight", "", {"found ''"}),
    {"no_version",
     [](SignedFile& f) { f.metadata.erase("kvfold_ridge_sums"); },
     {"metadata 'kvfold_ridge_sums': expected 1: not sums of a ridge"}},
    {"no_weight", [](SignedFile& f) { f.metadata.erase("weight"); }, {"key 'weight' is missing"}},
    {"no_identity", [](SignedFile& f) { f.metadata.erase("identity"); }, {"key 'identity' is missing"}},
    {"no_rows", [](SignedFile& f) { f.metadata.erase("rows"); }, {"'rows'"}},
    {"nan", [](SignedFile& f) { f.set("in_in", 3, std::nanf("")); }, {"tensor 'in_in'", "element 3"}},
    {"short", [](SignedFile& f) { f.tensors.erase("sum_in"); }, {"tensor 'sum_in'"}},
};

class LyingSums : public ::testing::TestWithParam<Lie> {};

TEST_P(LyingSums, AreRefused) {
  const TemporaryFolder folder;
  ThreadPool threads(1);
  ASSERT_TRUE(sums_of(make_texts(60, kIn, 1, 7), false, threads).save(folder.file("sums"), "these").ok());
  SignedFile file = SignedFile::parse(TemporaryFolder::read(folder.file("sums")));
  ASSERT_TRUE(load_sums(folder.write("same", file.build()), kSource, kTarget).ok());
  GetParam().tell(file);
  const auto loaded = load_sums(folder.write("lie", file.build()), kSource, kTarget);
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(wrong_with(loaded.status().message(), folder.file("lie"), GetParam().words), "");
}
INSTANTIATE_TEST_SUITE_P(Ridge, LyingSums, ::testing::ValuesIn(kSumsLies),
                         [](const auto& lie) { return std::string(lie.param.name); });

TEST(Ridge, BitsDoNotDependOnThreads) {
  const Texts texts = make_texts(500, kIn, 1, 8);
  std::vector<std::vector<float>> found;
  for (const int count : {1, 2, 5}) {
    ThreadPool threads(count);
    const RidgeSums sums = sums_of(texts, false, threads);
    const auto reduced =
        RidgeSolution::solve(sums, 0.01, threads).value().reduced(7, RidgeMetric::kLanes, threads);
    ASSERT_TRUE(reduced.ok());
    found.push_back(reduced.value().tensors.at("ridge.down").data);
  }
  EXPECT_EQ(found[0], found[1]);
  EXPECT_EQ(found[0], found[2]);
}

TEST(Ridge, RefusesWhatCannotBeSolved) {
  ThreadPool threads(1);
  const RidgeSums none(kSource, kTarget);
  EXPECT_THAT(RidgeSolution::solve(none, 0.1, threads).status().message(), HasSubstr("no rows"));
  // Fewer rows than dimensions and next to no lambda: the sums are singular.
  const RidgeSums few = sums_of(make_texts(2, kIn, 1, 9), false, threads);
  EXPECT_THAT(RidgeSolution::solve(few, 1e-30, threads).status().message(),
              HasSubstr("not positive definite"));
}

}  // namespace
}  // namespace kvfold::testing
