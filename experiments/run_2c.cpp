// Phase 2c: what happens when the cache's topic does not match the prompt's?
//
// Pure observation. The plan's question is how to tell a broken context from a transfer: broken is nonsense
// and loops, seen as a high perplexity under the baseline context; transfer is coherent text that shows the
// source, which the markers here (words of the source that have no place in a normal answer) point at.
#include "experiments/harness/driver.h"

int main(int argc, char** argv) {
  return kvfold::run_experiment(argc, argv,
                                {"2c", "What happens when cache topic doesn't match prompt?",
                                 "No success criterion. Compare transfer's perplexity under the baseline "
                                 "context (ppl|base) with that of noise, "
                                 "and\n"
                                 "look for the source's words."});
}
