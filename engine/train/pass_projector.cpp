#include "engine/train/pass_projector.h"

namespace kvfold {

Result<std::unique_ptr<Projector>> PassProjector::make(ProjectorData data) {
  KVFOLD_ASSIGN_OR_RETURN(const ProjectorPass pass, ProjectorPass::create(data));
  return std::unique_ptr<Projector>(new PassProjector(std::move(data), pass));
}

void PassProjector::apply(const float* source, int rows, bool first, float* target,
                          ThreadPool& threads) const {
  Gemm gemm(threads, *select_cpu_kernels());
  std::vector<char> firsts(static_cast<size_t>(rows), 0);
  if (first && rows > 0) firsts[0] = 1;
  ProjectorActivations activations;
  pass_.forward(data(), gemm, source, firsts, {}, activations, target);
}

}  // namespace kvfold
