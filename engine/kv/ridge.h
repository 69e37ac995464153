// Fitting a ridge projector: from all layers' K and V of the source to all of the target's, in closed form,
// from sums over pairs of rows that stream by.
#pragma once

#include "engine/dense.h"
#include "engine/kv/projector.h"

namespace kvfold {

// Sums over pairs of rows: enough to solve for any lambda and rank. Rows are shifted and scaled by mean and
// deviation of the first batch before they are multiplied, so that f32 has digits left for what varies.
class RidgeSums {
 public:
  // Rows that are multiplied at once.
  static constexpr int kBatch = 1536;

  RidgeSums(const CacheShape& source, const CacheShape& target);
  static int64_t bytes(const CacheShape& source, const CacheShape& target);

  // The rows of one text: source [rows][source width], target [rows][target width]. weights [rows], or null
  // for 1 each: what an error of that row counts, such as the attention that it gets. The first row of a text
  // is summed apart (`ridge.first` of projector.h). REQUIRES: rows >= 1, weights >= 0.
  void add(const float* source, const float* target, int rows, const float* weights, ThreadPool& threads);
  // Takes in what waits for its batch to be full. Sums of the same texts in the same order with the same
  // calls of this are the same bits.
  void flush(ThreadPool& threads);
  int64_t rows() const { return rows_; }  // without first ones
  int64_t texts() const { return texts_; }

  // Writes and reads all of it, and what the caller says of whose rows these are. REQUIRES of save: flushed.
  // Errors name the file.
  Status save(const std::string& path, const std::string& identity) const;
  static Result<RidgeSums> load(const std::string& path, const CacheShape& source, const CacheShape& target,
                                std::string* identity);

 private:
  friend class RidgeSolution;
  void begin();

  CacheShape source_, target_;
  int64_t rows_ = 0;
  int64_t texts_ = 0;
  double weight_ = 0;          // sum of weights
  std::vector<double> first_;  // [Sy], sum of first target rows
  std::vector<float> shift_in_, scale_in_, shift_out_, scale_out_;
  std::vector<double> sum_in_, sum_out_;  // weighted, of shifted and scaled rows
  Matrix in_in_;                          // [Sx, Sx], on and above the diagonal
  Matrix in_out_;                         // [Sx, Sy]
  std::vector<double> out_out_;           // [Sy], of squares
  Matrix waiting_in_, waiting_out_;       // [kBatch, ...]
  std::vector<float> waiting_weights_;
  int waiting_ = 0;
};

// What rank reduction is to keep: of each target dimension the same (kDimensions); or of each layer's K and V
// as much as they vary (kLanes: deviations within one layer's K or V keep their proportions).
enum class RidgeMetric { kDimensions, kLanes };

// The solution for one lambda: w = (X^T X + lambda n I)^-1 X^T Y in units of deviations (Hoerl and Kennard
// 1970).
class RidgeSolution {
 public:
  // Errors: lambda is too small for f32 (the sums are then not positive definite); no rows.
  static Result<RidgeSolution> solve(const RidgeSums& sums, double lambda, ThreadPool& threads);

  // The projector, all of it.
  ProjectorData whole() const;
  // Its best approximation of that rank, in the metric, on the rows it was fitted to (reduced-rank
  // regression: Izenman 1975). Errors: as leading_space(). REQUIRES: rank <= both widths.
  Result<ProjectorData> reduced(int rank, RidgeMetric metric, ThreadPool& threads) const;

  // Share of the variance explained on the rows it was fitted to, by part and target layer: [2][layers].
  std::vector<double> explained() const;

 private:
  explicit RidgeSolution(const RidgeSums& sums) : sums_(&sums) {}
  ProjectorData frame() const;
  std::vector<float> metric_weights(RidgeMetric metric) const;

  const RidgeSums* sums_;  // outlives this
  double lambda_ = 0;
  Matrix weight_;  // [Sx, Sy]
  Matrix in_out_;  // [Sx, Sy], centred
  std::vector<double> mean_in_, mean_out_;
};

}  // namespace kvfold
