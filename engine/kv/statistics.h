// What a cache's rows look like in numbers: norms, spectra and effective ranks of lanes, distances between
// two caches. All in f64, of the vectors as the pages hold them (keys before RoPE).
#pragma once

#include <vector>

#include "engine/kv/cache.h"

namespace kvfold {

// One lane's K or V, as a matrix of its rows.
struct LaneStatistics {
  int rows = 0;
  double mean = 0, deviation = 0;            // over all elements
  double mean_norm = 0, norm_deviation = 0;  // of the rows' Euclidean norms
  double least_norm = 0, largest_norm = 0;
  std::vector<double> singular_values;  // [min(rows, head_dim)], largest first; not centred
  double spectral_entropy = 0;          // -sum p log p, p = singular values / their sum, nats
  double effective_rank = 0;            // exp(spectral_entropy) (Roy and Vetterli 2007)
  int rank_90 = 0;                      // fewest singular values whose squares hold 90% of all squares
};
// All zero for a lane without rows.
LaneStatistics lane_statistics(const KvLanes& lanes, Part part, int lane);

// Euclidean norms of a lane's rows, by slot; negative where the lane lacks the row.
std::vector<double> row_norms(const KvLanes& lanes, Part part, int lane, int slots);

// Two lanes compared at the slots that both hold.
struct LaneDistance {
  int rows = 0;                 // compared
  int only_a = 0, only_b = 0;   // rows that one of them lacks
  double rms = 0;               // root of the mean squared difference of elements
  double relative = 0;          // |a - b| / |a| over all compared rows; 0 where both are zero
  double mean_cosine = 0;       // of rows; rows of zeros are left out
  double largest = 0;           // largest magnitude of a difference; NaN where one is none
  std::vector<double> by_slot;  // |a - b| of each slot's row; negative where it was not compared
};
// REQUIRES: equal shapes. The slots beyond the shorter cache count as lacking.
LaneDistance lane_distance(const KvCache& a, const KvCache& b, Part part, int lane);

}  // namespace kvfold
