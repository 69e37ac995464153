// The projector kinds `mlp` and `fuser`; engine/train/projector_pass.h says what they compute.
#pragma once

#include "engine/train/projector_pass.h"

namespace kvfold {

class PassProjector : public Projector {
 public:
  // Errors: as make_projector().
  static Result<std::unique_ptr<Projector>> make(ProjectorData data);
  void apply(const float* source, int rows, bool first, float* target, ThreadPool& threads) const override;

 private:
  PassProjector(ProjectorData data, const ProjectorPass& pass) : Projector(std::move(data)), pass_(pass) {}
  ProjectorPass pass_;
};

}  // namespace kvfold
