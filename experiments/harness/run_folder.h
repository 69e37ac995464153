// What a run leaves behind: runs/<phase>-<time>/ with manifest.json and trials.jsonl.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "engine/status.h"

namespace kvfold {

class RunFolder {
 public:
  // Makes `parent`/<phase>-<UTC time>, a number behind it if it exists. Errors: it cannot be made.
  static Result<RunFolder> create(const std::string& parent, const std::string& phase);
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const std::string& path() const { return path_; }
  // Writes manifest.json whole.
  Status write_manifest(const nlohmann::ordered_json& manifest) const;
  // Appends one line to trials.jsonl and flushes it to disk.
  Status append(const nlohmann::ordered_json& record);
  // A folder for files of the run's own, removed with everything in it when this object goes.
  const std::string& scratch() const { return scratch_; }

 private:
  RunFolder(std::string path, int trials);
  std::string path_;
  std::string scratch_;
  int trials_ = -1;  // file descriptor
};

}  // namespace kvfold
