// Training a projector through a frozen receiver: its rows are read in front of a text's continuation, and
// how well that is predicted is what is improved.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/train/parameters.h"
#include "engine/train/projector_pass.h"
#include "engine/train/receiver.h"

namespace kvfold {

struct TrainerOptions {
  std::string kind = "ridge";  // what comes out: ridge (its own factors are trained), mlp, fuser
  int hidden = 512;            // of mlp over all layers, of fuser for each
  int window = 3;              // of fuser: source layers that it sees
  int64_t steps = 1000;
  double rate = 0.03;  // of learning: how far an output in units of deviations may go in a step, about
  double clip = 1;     // of the gradients' joint norm
  AdamW adam;
  float teacher_share = 0;  // of the loss, where texts have a teacher
  uint64_t seed = 1;
};

struct TrainingText {
  const float* source;  // [rows][source width]
  int rows;             // of the context
  std::span<const TokenId> continuation;
  const float* teacher = nullptr;  // Reading::teacher
};

// How far training has come; all of it is in the checkpoint.
struct TrainingState {
  int64_t step = 0;  // taken
  int64_t best_step = 0;
  double best = 0;            // NLL on the dev texts then
  int stale = 0;              // evaluations since
  std::vector<double> curve;  // step, NLL, step, NLL ...
};

class ProjectorTrainer {
 public:
  // Begins from a ridge projector with factors, or goes on from one of `kind`. Errors: tensors that do not
  // fit. REQUIRES: receiver and gemm outlive this.
  static Result<std::unique_ptr<ProjectorTrainer>> create(ProjectorData start, const TrainerOptions& options,
                                                          Gemm& gemm);

  // Of parameters with gradients and moments.
  int64_t bytes() const;
  int64_t parameters() const;

  // Before the first step: rescales the factors so that each component has variance 1 on these texts. What
  // the projector computes stays the same, within rounding.
  void normalise(std::span<const TrainingText> texts);
  // One step of AdamW on the mean loss of a batch; returns its mean NLL. Errors: of Receiver::read; a loss or
  // a gradient that is no number, and then training ends here.
  Result<double> step(std::span<const TrainingText> batch, Receiver& receiver);
  // Mean NLL over all scored tokens, read `batch` texts at a time, with the gates as they will be used.
  // Errors: likewise.
  Result<double> evaluate(std::span<const TrainingText> texts, int batch, Receiver& receiver);
  // Notes what an evaluation gave; the best tensors are kept.
  void note(double nll);

  const TrainingState& state() const { return state_; }
  double gradient_norm() const { return norm_; }  // of the last step, before clipping
  // The best so far (as it began, if nothing was noted), tensors as F16 but for means, scales and gates.
  ProjectorData best() const;

  // The state, and all that goes into the next step. `identity`: of everything else that does; loading
  // refuses another one. Files appear whole or not at all. Errors name the file; after one of load() this is
  // as it was.
  Status save(const std::string& path, const std::string& identity) const;
  Status load(const std::string& path, const std::string& identity);

 private:
  ProjectorTrainer(TrainerOptions options, Gemm& gemm) : options_(std::move(options)), gemm_(&gemm) {}
  Status begin(ProjectorData start);
  void add_residual();
  std::vector<float> draw_gates() const;
  double temperature() const;
  Result<double> run(std::span<const TrainingText> batch, const std::vector<float>& gates, bool gradients,
                     Receiver& receiver);

  TrainerOptions options_;
  Gemm* gemm_;
  ProjectorData data_;
  ProjectorPass pass_;
  std::vector<Parameter> parameters_;
  std::vector<std::vector<float>> best_;  // by parameter; empty before the first evaluation
  TrainingState state_;
  double norm_ = 0;
  ProjectorActivations activations_;
  std::vector<float> source_, rows_, row_gradients_;
  std::vector<double> nll_;
};

// The texts of the step after `step` others, of `count`: each epoch is a shuffle of its own, from the seed.
std::vector<int> batch_at(int64_t step, int batch, int count, uint64_t seed);

}  // namespace kvfold
