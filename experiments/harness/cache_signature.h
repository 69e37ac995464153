// What rows of a cache look like, by lane, layer and row: the numbers that a run records of what was put in
// and of what is natural.
#pragma once

#include <vector>

#include "engine/kv/cache.h"

namespace kvfold {

// K or V of rows [begin, end). Empty vectors and zeros for no rows.
struct PartSignature {
  std::vector<std::vector<double>> lane_norms;  // [layers][kv_heads]: mean Euclidean norm of the lane's rows
  std::vector<std::vector<double>> row_norms;   // [layers][rows]: mean over heads
  std::vector<double> norm_deviations;  // [layers]: deviation of row norms within a lane, mean over heads
  std::vector<double> variances;        // [layers]: variance of all elements of a lane, mean over heads
  std::vector<double> entropies, ranks, ranks_90;  // [layers]: of lane_statistics, mean over heads
  double norm = 0;                                 // mean over lanes and rows
  double rank = 0, rank_90 = 0;                    // mean over lanes
};
struct CacheSignature {
  int rows = 0;
  PartSignature keys, values;
};
// A lane that lacks a row counts the rows that it has. REQUIRES: 0 <= begin <= end <= cache.size().
CacheSignature cache_signature(const KvCache& cache, int begin, int end);

}  // namespace kvfold
