// Tables for rotary position embedding (Su et al. 2021), in the two-step form that kernels/cpu/cpu.h
// describes.
#pragma once

#include <vector>

#include "engine/config.h"
#include "kernels/cpu/cpu.h"

namespace kvfold {

class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config);

  // Makes the table reach distances up to `distance`, or to a bound past which kernels compute angles
  // themselves.
  void reserve(int64_t distance);
  RopeView view() const;

 private:
  bool interleaved_;
  std::vector<double> frequencies_;  // [pairs], radians a position
  std::vector<float> key_cos_, key_sin_;
  std::vector<float> query_cos_, query_sin_;
};

}  // namespace kvfold
