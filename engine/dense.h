// Factorisations of dense f32 matrices, and the products that they are made of (train/gemm.h), for what is
// fitted in closed form.
//
// Every element is summed over the same pieces in the same order whatever the number of threads and whichever
// kernels run: results are the same bits.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/status.h"
#include "engine/thread_pool.h"

namespace kvfold {

// A matrix of its own, row after row.
struct Matrix {
  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), data(static_cast<size_t>(r * c)) {}
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> data;  // [rows][columns]
  float* row(int64_t r) { return data.data() + r * columns; }
  const float* row(int64_t r) const { return data.data() + r * columns; }
};

// A matrix to be read: element (i, j) at data[i * row_step + j * column_step].
struct MatrixRef {
  const float* data;
  int64_t rows, columns;
  int64_t row_step, column_step;

  MatrixRef(const float* values, int64_t r, int64_t c, int64_t step)
      : data(values), rows(r), columns(c), row_step(step), column_step(1) {}
  MatrixRef(const Matrix& m) : MatrixRef(m.data.data(), m.rows, m.columns, m.columns) {}  // NOLINT
  MatrixRef transposed() const {
    MatrixRef out = *this;
    std::swap(out.rows, out.columns);
    std::swap(out.row_step, out.column_step);
    return out;
  }
};

// A matrix to be written: element (i, j) at data[i * step + j].
struct MatrixOut {
  float* data;
  int64_t step;
};

enum class Sum { kSet, kAdd, kSubtract };

// c (+)= or -= a b. `upper`: elements above and on the diagonal alone are asked for, as of a symmetric
// product; below it they are made or left as they are, block by block. REQUIRES: a.columns == b.rows; c
// overlaps neither.
void multiply(const MatrixRef& a, const MatrixRef& b, Sum sum, const MatrixOut& c, ThreadPool& threads,
              bool upper = false);

// g = R^T R with R upper triangular, in place; what stands below the diagonal is not read. Errors: g is not
// positive definite (the row where that shows is named). (Golub and Van Loan, Matrix Computations, 4.2.)
Status cholesky(Matrix& g, ThreadPool& threads);

// b := (R^T R)^-1 b. REQUIRES: b.rows == r.rows.
void cholesky_solve(const Matrix& r, Matrix& b, ThreadPool& threads);
// b := R^-T b, the first half of it.
void solve_lower(const Matrix& r, Matrix& b, ThreadPool& threads);

// An orthonormal basis [s.rows, rank] of the space that the `rank` largest eigenvalues of a symmetric
// positive semidefinite matrix span, nearly, by subspace iteration (Halko, Martinsson, Tropp 2011,
// arXiv:0909.4061, algorithm 4.4) from seeded gaussians. REQUIRES: s whole; rank <= s.rows.
Result<Matrix> leading_space(const Matrix& s, int rank, int iterations, uint64_t seed, ThreadPool& threads);

}  // namespace kvfold
