// Phase 2a: does a KV cache survive transplantation at all?
//
// A text about a name and a city is fed to the model and its KV rows are taken out. The model is then asked
// for name and city with those rows put in front of the question, and without them. The rows carry the text
// if the answer names both with them and neither without. Noise of the same shape, mean, deviation and row
// norms says what a cache without content does; feeding the text itself says what the most is that could be
// expected.
#include "experiments/harness/driver.h"

int main(int argc, char** argv) {
  return kvfold::run_experiment(
      argc, argv,
      {"2a", "Does cache survive transplant at all?",
       "Success, as the plan has it: transfer names Lyra and Seattle, and baseline neither. In the raw "
       "framing an instruct\n"
       "model may end at once; that is a stall of the framing, not a failure of the cache."});
}
