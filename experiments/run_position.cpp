// Sweep "position": where the source's rows stand, and at which positions.
#include "experiments/harness/sweep.h"

int main(int argc, char** argv) { return kvfold::run_sweep(argc, argv, kvfold::kPositionSweep); }
