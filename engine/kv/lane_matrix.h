// One lane's K or V as a dense f32 matrix: what operations that compute with vectors work on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/kv/cache.h"

namespace kvfold {

struct LaneMatrix {
  int rows = 0;
  int columns = 0;
  std::vector<int> slots;   // [rows], increasing
  std::vector<float> data;  // [rows][columns]
  float* row(int r) { return &data[static_cast<size_t>(r) * columns]; }
  const float* row(int r) const { return &data[static_cast<size_t>(r) * columns]; }
};

// The rows that a lane holds.
LaneMatrix load_lane(const KvLanes& lanes, Part part, int lane);

// Gives the lane a fresh table with the matrix's rows at its slots. Errors: a value that pages cannot hold.
// REQUIRES: the pool has room for them.
Status store_lane(KvLanes& lanes, Part part, int lane, const LaneMatrix& m);

// "layer 3 head 1"
std::string lane_text(const CacheShape& shape, int lane);
// That a lane's K or V would hold `value`, which its pages cannot (kv_holds()).
Status beyond_pages(const KvLanes& lanes, Part part, int lane, float value);

// Pages that store_lane() allocates for `rows` rows.
inline size_t pages_of_rows(int rows) { return static_cast<size_t>((rows + kPageRows - 1) / kPageRows); }

// Euclidean norm of `n` values.
double norm(const float* x, int n);

}  // namespace kvfold
