// Sweeps: the plan's open questions, each a family of ways to put a source's rows into a cache.
//
// A sweep makes many caches of one trial and scores answers on each, without generating: the reference
// answer, the twin's, the trial's probes, and KL along the reference answer.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiments/harness/trial.h"

namespace kvfold {

// One source of a trial as a sweep meets it: its texts fed alone, behind the prefix that every cache has.
struct SweepSource {
  KvCache prefix;  // rows [0, begin)
  KvCache source;  // prefix and source
  KvCache filler;  // prefix and neutral text, of exactly as many rows as source
  KvCache alone;   // prefix and target, but its last token
  KvCache whole;   // prefix and all of the target
  std::span<const TokenId> target;
  int begin = 0;  // first row of the source
  int rows() const { return source.size() - begin; }
};

// A cache to be scored. `rest` is fed to it first (tokens of the target, without the last).
struct SweepPoint {
  std::string point;   // unique among the points of a trial
  std::string series;  // points that make one curve
  std::optional<double> x;
  std::string x_label;
  std::string selection;        // of the source's cache, in text form; empty: all
  std::string sink;             // "kept", "free" or ""
  nlohmann::ordered_json keys;  // the sweep's own: of those named in Sweep::keys
  KvCache cache;
  std::span<const TokenId> rest;
};

struct Sweep {
  std::string name;               // "position"
  std::string question;           // what the plan asks
  std::string reading;            // how to read the table
  std::vector<std::string> keys;  // keys of its own on every line
  // Prompt sets, and which of their trials.
  struct From {
    std::string prompts;
    std::function<bool(const Trial&)> use;
  };
  std::vector<From> from;
  std::function<Result<std::vector<SweepPoint>>(const SweepSource&)> points;
};

extern const Sweep kPositionSweep, kPartialSweep, kLayerSweep, kComponentSweep;

// Runs a sweep as a program. Exit status: 0, or 2 with one line on stderr.
int run_sweep(int argc, char** argv, const Sweep& sweep);

}  // namespace kvfold
