#include "engine/dense.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/random.h"
#include "engine/train/gemm.h"

namespace kvfold {
namespace {

// Rows of c that are made at a time: their panels of a lie in the second cache.
constexpr int64_t kBlockRows = 32 * kGemmRows;
// Rows that are factorised at once.
constexpr int64_t kStep = 192;

// to -= factor * from
void subtract(float* to, const float* from, float factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) to[j] -= factor * from[j];
}

// x[first .. first + count) := R^-T of it, for the triangle of R that begins at `first`; columns [c0, c1) of
// x, whose rows lie `step` apart.
void solve_triangle(const Matrix& r, int64_t first, int64_t count, float* x, int64_t step, int64_t c0,
                    int64_t c1) {
  for (int64_t i = first; i < first + count; ++i) {
    float* row = x + i * step;
    for (int64_t k = first; k < i; ++k) subtract(row + c0, x + k * step + c0, r.row(k)[i], c1 - c0);
    const float inverse = 1.0F / r.row(i)[i];
    for (int64_t j = c0; j < c1; ++j) row[j] *= inverse;
  }
}

// The same with R^-1.
void solve_triangle_back(const Matrix& r, int64_t first, int64_t count, float* x, int64_t step, int64_t c0,
                         int64_t c1) {
  for (int64_t i = first + count - 1; i >= first; --i) {
    float* row = x + i * step;
    for (int64_t k = i + 1; k < first + count; ++k)
      subtract(row + c0, x + k * step + c0, r.row(i)[k], c1 - c0);
    const float inverse = 1.0F / r.row(i)[i];
    for (int64_t j = c0; j < c1; ++j) row[j] *= inverse;
  }
}

// Columns that a thread takes of work that columns share.
constexpr int64_t kStripe = 256;
void in_stripes(int64_t begin, int64_t end, ThreadPool& threads,
                const std::function<void(int64_t, int64_t)>& work) {
  const int64_t stripes = (end - begin + kStripe - 1) / kStripe;
  threads.run(stripes, [&](int64_t first, int64_t last, int) {
    for (int64_t s = first; s < last; ++s)
      work(begin + s * kStripe, std::min(end, begin + (s + 1) * kStripe));
  });
}

}  // namespace

void multiply(const MatrixRef& a, const MatrixRef& b, Sum sum, const MatrixOut& c, ThreadPool& threads,
              bool upper) {
  KVFOLD_CHECK(a.columns == b.rows);
  if (a.columns == 0 && sum == Sum::kSet)
    for (int64_t i = 0; i < a.rows; ++i) std::fill_n(c.data + i * c.step, b.columns, 0.0F);
  Gemm gemm(threads, *select_cpu_kernels());
  std::vector<float> negative;
  for (int64_t r = 0; r < a.rows; r += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, a.rows - r);
    const int64_t first = upper ? std::min(r, b.columns) : 0;
    Strided left{a.data + r * a.row_step, a.row_step, a.column_step};
    if (sum == Sum::kSubtract) {
      negative.resize(static_cast<size_t>(rows * a.columns));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < a.columns; ++k)
          negative[i * a.columns + k] = -left.data[i * left.row_stride + k * left.column_stride];
      left = {negative.data(), a.columns};
    }
    gemm.multiply(left, {b.data + first * b.column_step, b.row_step, b.column_step},
                  {rows, b.columns - first, a.columns},
                  {c.data + r * c.step + first, c.step, sum != Sum::kSet});
  }
}

Status cholesky(Matrix& g, ThreadPool& threads) {
  KVFOLD_CHECK(g.rows == g.columns);
  const int64_t n = g.rows;
  for (int64_t p = 0; p < n; p += kStep) {
    const int64_t count = std::min(kStep, n - p);
    const int64_t end = p + count;
    // The block on the diagonal; its pivots are the eigenvalues' guard.
    for (int64_t i = p; i < end; ++i) {
      for (int64_t k = p; k < i; ++k) subtract(g.row(i) + i, g.row(k) + i, g.row(k)[i], end - i);
      const float pivot = g.row(i)[i];
      if (!(pivot > 0) || !std::isfinite(pivot))
        return Status::error(
            fmt::format("the matrix is not positive definite: pivot {} of {} is {}", i, n, pivot));
      const float inverse = 1.0F / std::sqrt(pivot);
      for (int64_t j = i; j < end; ++j) g.row(i)[j] *= inverse;
    }
    in_stripes(end, n, threads,
               [&](int64_t c0, int64_t c1) { solve_triangle(g, p, count, g.data.data(), n, c0, c1); });
    const MatrixRef right(g.row(p) + end, count, n - end, n);
    multiply(right.transposed(), right, Sum::kSubtract, {g.row(end) + end, n}, threads, true);
  }
  return {};
}

void solve_lower(const Matrix& r, Matrix& b, ThreadPool& threads) {
  const int64_t n = r.rows;
  KVFOLD_CHECK(b.rows == n);
  for (int64_t p = 0; p < n; p += kStep) {
    const int64_t count = std::min(kStep, n - p);
    const int64_t end = p + count;
    in_stripes(0, b.columns, threads, [&](int64_t c0, int64_t c1) {
      solve_triangle(r, p, count, b.data.data(), b.columns, c0, c1);
    });
    if (end == n) break;
    multiply(MatrixRef(r.row(p) + end, count, n - end, n).transposed(),
             MatrixRef(b.row(p), count, b.columns, b.columns), Sum::kSubtract, {b.row(end), b.columns},
             threads);
  }
}

void cholesky_solve(const Matrix& r, Matrix& b, ThreadPool& threads) {
  solve_lower(r, b, threads);
  const int64_t n = r.rows;
  for (int64_t p = (n - 1) / kStep * kStep; p >= 0; p -= kStep) {
    const int64_t count = std::min(kStep, n - p);
    in_stripes(0, b.columns, threads, [&](int64_t c0, int64_t c1) {
      solve_triangle_back(r, p, count, b.data.data(), b.columns, c0, c1);
    });
    multiply(MatrixRef(r.data.data() + p, p, count, n), MatrixRef(b.row(p), count, b.columns, b.columns),
             Sum::kSubtract, {b.data.data(), b.columns}, threads);
  }
}

namespace {

// The columns of q made orthonormal: q := q R^-1 with R^T R = q^T q + shift (shifted Cholesky QR: Fukaya et
// al. 2020, arXiv:1809.11085). A pass brings columns up to 300 times weaker than the strongest to its length.
Status orthonormalize(Matrix& q, ThreadPool& threads) {
  constexpr int kPasses = 4;
  for (int pass = 0; pass < kPasses; ++pass) {
    Matrix gram(q.columns, q.columns);
    multiply(MatrixRef(q).transposed(), q, Sum::kSet, {gram.data.data(), gram.columns}, threads, true);
    double trace = 0;
    for (int64_t i = 0; i < gram.rows; ++i) trace += gram.row(i)[i];
    if (pass + 1 < kPasses)
      for (int64_t i = 0; i < gram.rows; ++i) gram.row(i)[i] += static_cast<float>(1e-5 * trace);
    KVFOLD_RETURN_IF_ERROR(cholesky(gram, threads));
    Matrix t(q.columns, q.rows);
    for (int64_t i = 0; i < q.rows; ++i)
      for (int64_t j = 0; j < q.columns; ++j) t.row(j)[i] = q.row(i)[j];
    solve_lower(gram, t, threads);
    for (int64_t i = 0; i < q.rows; ++i)
      for (int64_t j = 0; j < q.columns; ++j) q.row(i)[j] = t.row(j)[i];
  }
  return {};
}

}  // namespace

Result<Matrix> leading_space(const Matrix& s, int rank, int iterations, uint64_t seed, ThreadPool& threads) {
  KVFOLD_CHECK(s.rows == s.columns && rank <= s.rows);
  Matrix q(s.rows, rank);
  Random random(seed);
  for (float& x : q.data) x = static_cast<float>(random.gaussian());
  for (int i = 0; i < iterations; ++i) {
    Matrix next(q.rows, q.columns);
    multiply(s, q, Sum::kSet, {next.data.data(), next.columns}, threads);
    q = std::move(next);
    KVFOLD_RETURN_IF_ERROR(orthonormalize(q, threads));
  }
  return q;
}

}  // namespace kvfold
