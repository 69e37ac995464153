// Phase 2b: can the model retrieve what a foreign cache states?
//
// The source states a fact, the target asks for it. The model may well know these facts without the cache, so
// an answer that baseline also gives says nothing about transfer; the table shows both.
#include "experiments/harness/driver.h"

int main(int argc, char** argv) {
  return kvfold::run_experiment(
      argc, argv,
      {"2b",
       "Can the model \"retrieve\" information from foreign cache?",
       "Only where baseline lacks the answer can transfer have brought it. These two facts are known to most "
       "models, so\n"
       "expect baseline to have them too.",
       {{"capital", "The capital of France is Paris", "What is the capital of France?", {"Paris"}},
        {"boiling-point",
         "Water boils at 100 degrees Celsius",
         "At what temperature does water boil?",
         {"100"}}}});
}
