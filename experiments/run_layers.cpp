// Sweep "layers": a source spliced into neutral text layer by layer: content and mode.
#include "experiments/harness/sweep.h"

int main(int argc, char** argv) { return kvfold::run_sweep(argc, argv, kvfold::kLayerSweep); }
