// The projector kind `ridge`; projector.h says what it computes. Kinds that add to it begin here.
#pragma once

#include "engine/dense.h"
#include "engine/kv/projector.h"

namespace kvfold {

class RidgeProjector : public Projector {
 public:
  // Errors: of tensors named ridge.*, as make_projector().
  static Result<std::unique_ptr<Projector>> make(ProjectorData data);
  void apply(const float* source, int rows, bool first, float* target, ThreadPool& threads) const override;

 protected:
  explicit RidgeProjector(ProjectorData data);
};

// Errors: a tensor named ridge.* is missing, unknown or of another shape, or stands beside what it replaces.
Status check_ridge_tensors(const ProjectorData& data);

// How much of each target layer's rows comes from each source layer through the tensors named ridge.*: the
// norm of the block of weights, in units of deviations, K and V of both together, [target layers][source
// layers]. REQUIRES: check_ridge_tensors().
Matrix layer_flow(const ProjectorData& data, ThreadPool& threads);

}  // namespace kvfold
