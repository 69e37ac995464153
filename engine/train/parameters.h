// What is trained: tensors with their gradients, and AdamW's memory of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/thread_pool.h"

namespace kvfold {

struct Parameter {
  // `v` outlives this and keeps its size.
  Parameter(std::string n, std::vector<float>& v, double r, bool d)
      : name(std::move(n)),
        value(&v),
        gradient(v.size()),
        mean(v.size()),
        square(v.size()),
        rate(r),
        decay(d) {}

  std::string name;
  std::vector<float>* value;
  std::vector<float> gradient;
  std::vector<float> mean, square;  // running means of the gradient and of its square
  double rate;                      // of learning, times the schedule's
  bool decay;                       // whether weight decay pulls at it
};

struct AdamW {
  double first = 0.9, second = 0.999;  // what of the running means stays, a step
  double epsilon = 1e-8;
  double decay = 0.01;
};

// Scales all gradients so that their joint Euclidean norm is at most `most`; returns the norm as it was. The
// same bits for any number of threads.
double clip_gradients(std::vector<Parameter>& parameters, double most, ThreadPool& pool);

// One step (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with the decay too multiplied by the
// parameter's rate, as PyTorch has it), `step` counted from 1; gradients are zero afterwards. `rate`
// multiplies each parameter's own.
void adamw_step(std::vector<Parameter>& parameters, const AdamW& options, int64_t step, double rate,
                ThreadPool& pool);

// Rises over the first tenth of the steps to 1, then falls as a cosine to a tenth. `step` from 1 to `steps`.
double scheduled_rate(int64_t step, int64_t steps);

}  // namespace kvfold
