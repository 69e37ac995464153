// Sweep "partial": a source whose rows stand in some layers alone.
#include "experiments/harness/sweep.h"

int main(int argc, char** argv) { return kvfold::run_sweep(argc, argv, kvfold::kPartialSweep); }
