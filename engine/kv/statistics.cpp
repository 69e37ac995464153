#include "engine/kv/statistics.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/kv/lane_matrix.h"

namespace kvfold {
namespace {

// The smaller of the two Gram matrices, [n][n].
std::vector<double> gram_matrix(const LaneMatrix& m, int n) {
  std::vector<double> gram(static_cast<size_t>(n) * n);
  const bool by_rows = m.rows <= m.columns;
  for (int k = 0; k < (by_rows ? m.columns : m.rows); ++k)
    for (int i = 0; i < n; ++i) {
      const double x = by_rows ? m.row(i)[k] : m.row(k)[i];
      for (int j = 0; j <= i; ++j)
        gram[static_cast<size_t>(i) * n + j] += x * (by_rows ? m.row(j)[k] : m.row(k)[j]);
    }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) gram[static_cast<size_t>(j) * n + i] = gram[static_cast<size_t>(i) * n + j];
  return gram;
}

// Turns rows and columns p and q of a symmetric matrix so that element (p, q) becomes zero.
void rotate_away(std::vector<double>& a, int n, int p, int q) {
  const auto at = [&](int i, int j) -> double& { return a[static_cast<size_t>(i) * n + j]; };
  const double theta = (at(q, q) - at(p, p)) / (2 * at(p, q));
  const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::sqrt(theta * theta + 1));
  const double c = 1 / std::sqrt(t * t + 1);
  const double s = t * c;
  for (int k = 0; k < n; ++k) {
    const double kp = at(k, p);
    const double kq = at(k, q);
    at(k, p) = c * kp - s * kq;
    at(k, q) = s * kp + c * kq;
  }
  for (int k = 0; k < n; ++k) {
    const double pk = at(p, k);
    const double qk = at(q, k);
    at(p, k) = c * pk - s * qk;
    at(q, k) = s * pk + c * qk;
  }
}

// Eigenvalues of a symmetric matrix by cyclic Jacobi rotations (Golub and Van Loan, section 8.5), largest
// first.
std::vector<double> eigenvalues(std::vector<double> a, int n) {
  constexpr int kMostSweeps = 50;
  constexpr double kNegligible = 1e-15;
  double trace = 0;
  for (int i = 0; i < n; ++i) trace += std::abs(a[static_cast<size_t>(i) * n + i]);
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    bool turned = false;
    for (int p = 0; p < n; ++p)
      for (int q = p + 1; q < n; ++q) {
        if (std::abs(a[static_cast<size_t>(p) * n + q]) <= kNegligible * trace) continue;
        rotate_away(a, n, p, q);
        turned = true;
      }
    if (!turned) break;
  }
  std::vector<double> values(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) values[i] = a[static_cast<size_t>(i) * n + i];
  std::sort(values.begin(), values.end(), std::greater<>());
  return values;
}

void describe_spectrum(LaneStatistics& s) {
  const double sum = std::accumulate(s.singular_values.begin(), s.singular_values.end(), 0.0);
  double squares = 0;
  for (const double x : s.singular_values) squares += x * x;
  if (sum <= 0) return;
  for (const double x : s.singular_values)
    if (x > 0) s.spectral_entropy -= x / sum * std::log(x / sum);
  s.effective_rank = std::exp(s.spectral_entropy);
  constexpr double kShare = 0.9;
  double held = 0;
  while (held < kShare * squares && s.rank_90 < static_cast<int>(s.singular_values.size())) {
    const double x = s.singular_values[s.rank_90++];
    held += x * x;
  }
}

double deviation(double sum, double squares, double n) {
  return std::sqrt(std::max(0.0, squares / n - sum / n * (sum / n)));
}

}  // namespace

LaneStatistics lane_statistics(const KvLanes& lanes, Part part, int lane) {
  const LaneMatrix m = load_lane(lanes, part, lane);
  LaneStatistics s;
  s.rows = m.rows;
  if (m.rows == 0) return s;
  double sum = 0;
  double squares = 0;
  for (const float x : m.data) {
    sum += x;
    squares += static_cast<double>(x) * x;
  }
  const auto count = static_cast<double>(m.data.size());
  s.mean = sum / count;
  s.deviation = deviation(sum, squares, count);
  double norm_sum = 0;
  s.least_norm = INFINITY;
  for (int r = 0; r < m.rows; ++r) {
    const double x = norm(m.row(r), m.columns);
    norm_sum += x;
    s.least_norm = std::min(s.least_norm, x);
    s.largest_norm = std::max(s.largest_norm, x);
  }
  s.mean_norm = norm_sum / m.rows;
  s.norm_deviation = deviation(norm_sum, squares, m.rows);

  const int n = std::min(m.rows, m.columns);
  for (const double x : eigenvalues(gram_matrix(m, n), n))
    s.singular_values.push_back(std::sqrt(std::max(0.0, x)));
  describe_spectrum(s);
  return s;
}

std::vector<double> row_norms(const KvLanes& lanes, Part part, int lane, int slots) {
  std::vector<double> norms(static_cast<size_t>(slots), -1.0);
  const LaneMatrix m = load_lane(lanes, part, lane);
  for (int r = 0; r < m.rows; ++r) norms[m.slots[r]] = norm(m.row(r), m.columns);
  return norms;
}

LaneDistance lane_distance(const KvCache& a, const KvCache& b, Part part, int lane) {
  const LaneMatrix x = load_lane(a.lanes(), part, lane);
  const LaneMatrix y = load_lane(b.lanes(), part, lane);
  LaneDistance out;
  out.by_slot.assign(static_cast<size_t>(std::max(a.size(), b.size())), -1.0);
  double squares = 0;
  double natural = 0;
  double cosines = 0;
  int with_cosine = 0;
  for (int i = 0, j = 0; i < x.rows && j < y.rows;) {
    if (x.slots[i] != y.slots[j]) {
      ++(x.slots[i] < y.slots[j] ? i : j);
      continue;
    }
    double row = 0;
    double dot = 0;
    for (int c = 0; c < x.columns; ++c) {
      // Two infinities are the same; a NaN is no number's equal, and stays the largest.
      const bool same = x.row(i)[c] == y.row(j)[c];
      const double difference = same ? 0 : static_cast<double>(x.row(i)[c]) - y.row(j)[c];
      row += difference * difference;
      dot += static_cast<double>(x.row(i)[c]) * y.row(j)[c];
      if (!(std::abs(difference) <= out.largest) && !std::isnan(out.largest))
        out.largest = std::abs(difference);
    }
    const double nx = norm(x.row(i), x.columns);
    const double ny = norm(y.row(j), x.columns);
    squares += row;
    natural += nx * nx;
    if (nx > 0 && ny > 0) {
      cosines += dot / (nx * ny);
      ++with_cosine;
    }
    out.by_slot[x.slots[i]] = std::sqrt(row);
    ++out.rows;
    ++i;
    ++j;
  }
  out.only_a = x.rows - out.rows;
  out.only_b = y.rows - out.rows;
  if (out.rows == 0) return out;
  out.rms = std::sqrt(squares / (static_cast<double>(out.rows) * x.columns));
  out.relative = squares == 0 ? 0 : std::sqrt(squares / natural);
  out.mean_cosine = with_cosine == 0 ? 0 : cosines / with_cosine;
  return out;
}

}  // namespace kvfold
