// The same-cache control: a cache goes through a file into another process, which continues from it.
#pragma once

#include <string>
#include <vector>

#include "experiments/harness/generate.h"
#include "loaders/open.h"

namespace kvfold {

// A saved cache, and the token with which the other process goes on.
struct ReplayJob {
  std::string cache_path;
  TokenId token = 0;
};

struct ReplayOptions {
  std::string model;
  std::string quantize = "none";
  bool exact = false;
  int threads = 0;
  int count = 0;  // tokens to continue by
};

// Runs this program again (as `PROGRAM --replay JOBS`) and gives what it continued. `folder` takes the job
// and answer files for the time of the run. Errors: the process could not be run, or failed; its own line is
// on stderr.
Result<std::vector<Continuation>> replay_elsewhere(const ReplayOptions& options,
                                                   const std::vector<ReplayJob>& jobs,
                                                   const std::string& folder);

// The other process's side. `jobs_path` names what replay_elsewhere wrote.
Status run_replay(const std::string& jobs_path);

}  // namespace kvfold
