// Phase 2b: can the model retrieve what a foreign cache states?
//
// The source states a fact, the target asks for it. The model may well know these facts without the cache, so
// an answer that baseline also gives says nothing about transfer; the table shows both.
#include "experiments/harness/driver.h"

int main(int argc, char** argv) {
  return kvfold::run_experiment(argc, argv,
                                {"2b", "Can the model \"retrieve\" information from foreign cache?",
                                 "Only where baseline lacks the answer can transfer have brought it. The "
                                 "plan's two facts are known to most "
                                 "models, so\n"
                                 "expect baseline to have them too; the counterfactual family (--family) is "
                                 "where only the cache can be the cause."});
}
