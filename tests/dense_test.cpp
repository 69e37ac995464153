// Dense products and factorisations against sums in f64; the same bits for any number of threads.
#include "engine/dense.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/random.h"

namespace kvfold::testing {
namespace {

using ::testing::HasSubstr;

Matrix gaussians(int64_t rows, int64_t columns, uint64_t seed) {
  Matrix m(rows, columns);
  Random random(seed);
  for (float& x : m.data) x = static_cast<float>(random.gaussian());
  return m;
}

// a b in f64, row-major.
std::vector<double> product(const Matrix& a, const Matrix& b) {
  std::vector<double> out(static_cast<size_t>(a.rows * b.columns));
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t k = 0; k < a.columns; ++k)
      for (int64_t j = 0; j < b.columns; ++j)
        out[i * b.columns + j] += static_cast<double>(a.row(i)[k]) * b.row(k)[j];
  return out;
}

Matrix transpose(const Matrix& m) {
  Matrix out(m.columns, m.rows);
  for (int64_t i = 0; i < m.rows; ++i)
    for (int64_t j = 0; j < m.columns; ++j) out.row(j)[i] = m.row(i)[j];
  return out;
}

double farthest(const Matrix& found, const std::vector<double>& expected) {
  double far = 0;
  for (size_t i = 0; i < expected.size(); ++i) far = std::max(far, std::abs(found.data[i] - expected[i]));
  return far;
}

struct Shape {
  int64_t m, n, k;
};

TEST(Dense, MultipliesInEveryOrientation) {
  ThreadPool threads(2);
  // Around the tile, the block and the depth.
  for (const Shape& s :
       {Shape{1, 1, 1}, {12, 32, 5}, {13, 33, 192}, {385, 513, 193}, {7, 600, 400}, {3, 4, 0}}) {
    const Matrix a = gaussians(s.m, s.k, 1);
    const Matrix b = gaussians(s.k, s.n, 2);
    const std::vector<double> expected = product(a, b);
    const Matrix at = transpose(a);
    const Matrix bt = transpose(b);
    const double limit = 1e-6 * static_cast<double>(s.k + 1);  // observed 2.4e-5 for k = 400
    for (const bool left : {false, true})
      for (const bool right : {false, true}) {
        Matrix c(s.m, s.n);
        std::fill(c.data.begin(), c.data.end(), 7.0F);
        multiply(left ? MatrixRef(at).transposed() : a, right ? MatrixRef(bt).transposed() : b, Sum::kSet,
                 {c.data.data(), s.n}, threads);
        EXPECT_LE(farthest(c, expected), limit) << s.m << " " << s.n << " " << s.k;
        multiply(a, b, Sum::kSubtract, {c.data.data(), s.n}, threads);
        EXPECT_LE(farthest(c, std::vector<double>(expected.size())), 2 * limit);
        multiply(a, b, Sum::kAdd, {c.data.data(), s.n}, threads);
        EXPECT_LE(farthest(c, expected), 2 * limit);
      }
  }
}

TEST(Dense, AnUpperProductIsTheUpperPartOfTheWhole) {
  ThreadPool threads(2);
  const Matrix a = gaussians(90, 1200, 3);
  Matrix whole(1200, 1200);
  Matrix upper(1200, 1200);
  multiply(MatrixRef(a).transposed(), a, Sum::kSet, {whole.data.data(), 1200}, threads);
  multiply(MatrixRef(a).transposed(), a, Sum::kSet, {upper.data.data(), 1200}, threads, true);
  for (int64_t i = 0; i < 1200; ++i)
    EXPECT_TRUE(std::equal(whole.row(i) + i, whole.row(i) + 1200, upper.row(i) + i)) << i;
  EXPECT_EQ(upper.row(1199)[0], 0);  // a block below the diagonal is not made
}

TEST(Dense, SolvesNormalEquations) {
  ThreadPool threads(2);
  for (const int64_t n : {1, 5, 191, 192, 193, 500}) {
    const Matrix x = gaussians(2 * n + 3, n, 4);
    const Matrix expected = gaussians(n, 7, 5);
    Matrix g(n, n);
    multiply(MatrixRef(x).transposed(), x, Sum::kSet, {g.data.data(), n}, threads);
    Matrix b(n, 7);
    const std::vector<double> right = product(g, expected);
    std::copy(right.begin(), right.end(), b.data.begin());
    ASSERT_TRUE(cholesky(g, threads).ok());
    cholesky_solve(g, b, threads);
    // Observed 3.0e-5; the condition of such matrices is below 40.
    EXPECT_LE(farthest(b, std::vector<double>(expected.data.begin(), expected.data.end())), 2e-4) << n;
  }
}

TEST(Dense, RefusesWhatIsNotPositiveDefinite) {
  ThreadPool threads(1);
  Matrix g(3, 3);
  g.row(0)[0] = g.row(1)[1] = 1;
  g.row(2)[2] = -1;
  EXPECT_THAT(cholesky(g, threads).message(), HasSubstr("pivot 2 of 3 is -1"));
}

TEST(Dense, FindsTheSpaceOfTheLargestEigenvalues) {
  ThreadPool threads(2);
  // s = q diag(100, 81, 64, 49, then 1e-2) q^T, with q from a factorisation of gaussians.
  constexpr int64_t kSize = 60;
  constexpr int kRank = 4;
  Matrix whole = gaussians(kSize, kSize, 6);
  Matrix square(kSize, kSize);
  multiply(MatrixRef(whole).transposed(), whole, Sum::kSet, {square.data.data(), kSize}, threads);
  const auto q = leading_space(square, kSize, 1, 7, threads);
  ASSERT_TRUE(q.ok());
  Matrix scaled = q.value();
  for (int64_t i = 0; i < kSize; ++i)
    for (int64_t j = 0; j < kSize; ++j)
      scaled.row(i)[j] *= j < kRank ? static_cast<float>((10 - j) * (10 - j)) : 1e-2F;
  Matrix s(kSize, kSize);
  multiply(scaled, MatrixRef(q.value()).transposed(), Sum::kSet, {s.data.data(), kSize}, threads);
  const auto space = leading_space(s, kRank, 4, 8, threads);
  ASSERT_TRUE(space.ok());
  // Orthonormal, and all of its length within the first four columns of q.
  Matrix overlap(kRank, kRank);
  const MatrixRef first(q.value().data.data(), kSize, kRank, kSize);
  multiply(first.transposed(), space.value(), Sum::kSet, {overlap.data.data(), kRank}, threads);
  Matrix gram(kRank, kRank);
  multiply(MatrixRef(space.value()).transposed(), space.value(), Sum::kSet, {gram.data.data(), kRank},
           threads);
  for (int i = 0; i < kRank; ++i) {
    double length = 0;
    for (int j = 0; j < kRank; ++j) {
      length += static_cast<double>(overlap.row(j)[i]) * overlap.row(j)[i];
      EXPECT_NEAR(gram.row(i)[j], i == j ? 1 : 0, 1e-5);  // observed 2e-7
    }
    EXPECT_NEAR(length, 1, 1e-4);  // observed 1e-6
  }
}

TEST(Dense, BitsDoNotDependOnThreads) {
  const Matrix x = gaussians(500, 450, 9);
  std::vector<std::vector<float>> found;
  for (const int count : {1, 2, 5}) {
    ThreadPool threads(count);
    Matrix g(450, 450);
    multiply(MatrixRef(x).transposed(), x, Sum::kSet, {g.data.data(), 450}, threads, true);
    ASSERT_TRUE(cholesky(g, threads).ok());
    Matrix b = gaussians(450, 300, 10);
    cholesky_solve(g, b, threads);
    found.push_back(b.data);
  }
  EXPECT_EQ(found[0], found[1]);
  EXPECT_EQ(found[0], found[2]);
}

}  // namespace
}  // namespace kvfold::testing
