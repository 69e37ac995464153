// The main program of every phase: options, conditions, checks, records, table.
#pragma once

#include "experiments/harness/trial.h"

namespace kvfold {

// Runs an experiment as a program. Exit status: 0; 2 for bad input or a failed exactness check, with one line
// on stderr.
int run_experiment(int argc, char** argv, const Experiment& experiment);

}  // namespace kvfold
