// The main program of every phase: trials, conditions, checks, records, table.
#pragma once

#include <string>

namespace kvfold {

struct Experiment {
  std::string phase;     // "2a": also the name of its prompt set
  std::string question;  // what the plan asks
  std::string reading;   // how to read the table
};

// Runs an experiment as a program. Exit status: 0; 2 for bad input or a failed exactness check, with one line
// on stderr.
int run_experiment(int argc, char** argv, const Experiment& experiment);

}  // namespace kvfold
