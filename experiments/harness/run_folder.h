// What a run leaves behind: runs/<phase>-<time>/ with manifest.json and trials.jsonl.
//
// A run that was killed is gone on with by the same command: its folder's manifest holds what decides the
// results, and the trials that are whole in trials.jsonl are not run again. A lock keeps a second process
// out.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>

#include "engine/status.h"

namespace kvfold {

class RunFolder {
 public:
  // The newest folder of `parent` whose manifest is of an unfinished run with this `identity`, or a new one,
  // <phase>-<UTC time>; always a new one where `fresh`. Errors: another process is at work in it; it cannot
  // be made.
  static Result<RunFolder> open(const std::string& parent, const std::string& phase,
                                const std::string& identity, bool fresh);
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const std::string& path() const { return path_; }
  bool resumed() const { return resumed_; }

  // The manifest of a resumed run; null for a new one.
  const nlohmann::json& old_manifest() const { return old_manifest_; }
  // Writes manifest.json whole. The run's identity is added to it.
  Status write_manifest(nlohmann::ordered_json manifest) const;

  // Which lines belong together: a line's group, and how many lines that has, at least one.
  struct Group {
    std::string name;
    int64_t lines = 0;
  };
  // Opens `file` (such as trials.jsonl) for appending. Of what an earlier process left, lines are kept up to
  // the first group that is not whole, stands there already, or is none of `groups`, those that the run is
  // made of. Gives the groups kept.
  Result<std::set<std::string>> open_records(const std::string& file, const std::set<std::string>& groups,
                                             const std::function<Group(const nlohmann::json&)>& group_of);
  // Appends the lines of one group with one write, and flushes them to disk.
  Status append(std::span<const nlohmann::ordered_json> records);

  // A folder for files of the run's own, removed with everything in it when this object goes.
  const std::string& scratch() const { return scratch_; }

 private:
  RunFolder(std::string path, int lock, std::string identity);
  static Result<RunFolder> find(const std::string& parent, const std::string& phase,
                                const std::string& identity);
  static Result<RunFolder> create(const std::string& parent, const std::string& phase,
                                  const std::string& identity);
  Status make_scratch() const;

  std::string path_;
  std::string scratch_;
  std::string identity_;
  nlohmann::json old_manifest_;
  bool resumed_ = false;
  std::string records_path_;
  int records_ = -1;  // file descriptors
  int lock_ = -1;
};

}  // namespace kvfold
