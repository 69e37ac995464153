// How far a run is, on stderr: one line a step; on a terminal a bar that is drawn over itself.
#pragma once

#include <chrono>
#include <string>

namespace kvfold {

class Progress {
 public:
  Progress(std::string name, size_t total);
  // One step is done: a bar, the count, an estimate of the time left, and `what`.
  void step(const std::string& what);

 private:
  std::string name_;
  size_t total_;
  size_t done_ = 0;
  bool terminal_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace kvfold
