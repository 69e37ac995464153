// What a cache is, without pages: a dense model of the cache and of its operations, written from their
// descriptions alone, to compare the paged one with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/kv/ops.h"

namespace kvfold::testing {

struct DenseRow {
  TokenId token = 0;
  int32_t position = 0;
  std::string source;
  int source_row = 0;
  uint32_t operations = 0;
};

using DenseVector = std::vector<double>;

// A cache, or a slice (whose lanes may hold K or V alone; next_position then means nothing).
struct DenseCache {
  CacheShape shape;
  std::vector<DenseRow> rows;
  // [part * lanes + lane][slot]; nothing where the lane lacks the row.
  std::vector<std::vector<std::optional<DenseVector>>> vectors;
  int32_t next_position = 0;

  explicit DenseCache(const CacheShape& cache_shape)
      : shape(cache_shape), vectors(static_cast<size_t>(2) * cache_shape.lanes()) {}
  int size() const { return static_cast<int>(rows.size()); }
  std::optional<DenseVector>& at(int part, int lane, int slot) {
    return vectors[static_cast<size_t>(part) * shape.lanes() + lane][slot];
  }
  const std::optional<DenseVector>& at(int part, int lane, int slot) const {
    return vectors[static_cast<size_t>(part) * shape.lanes() + lane][slot];
  }
  void add_row(const DenseRow& row);  // held by no lane
  void remove_rows(const std::vector<bool>& gone);
};

DenseCache dense_extract(const DenseCache& cache, const Selection& selection);
DenseCache dense_insert(const DenseCache& cache, const DenseCache& slice, int at,
                        const InsertPositions& positions);
DenseCache dense_overwrite(const DenseCache& cache, const DenseCache& slice, const std::vector<int>& rows);
DenseCache dense_erase(const DenseCache& cache, const Selection& selection);
DenseCache dense_keep(const DenseCache& cache, const Selection& selection);
DenseCache dense_truncate(const DenseCache& cache, int size);
DenseCache dense_shift(const DenseCache& cache, const std::vector<int>& rows, int32_t delta);
DenseCache dense_set_positions(const DenseCache& cache, const std::vector<int32_t>& positions);
DenseCache dense_concat(const std::vector<DenseCache>& slices);
DenseCache dense_mix(const DenseCache& a, const DenseCache& b, double alpha, const Selection& selection);
DenseCache dense_add(const DenseCache& cache, const SteeringVectors& vectors, double coefficient,
                     const Selection& selection);
DenseCache dense_scale(const DenseCache& cache, double factor, const Selection& selection);
DenseCache dense_match_norm(const DenseCache& cache, const DenseCache& to, NormTarget target,
                            const Selection& selection);

}  // namespace kvfold::testing
