// Sweep "components": K or V alone, one KV head alone, one lane alone.
#include "experiments/harness/sweep.h"

int main(int argc, char** argv) { return kvfold::run_sweep(argc, argv, kvfold::kComponentSweep); }
