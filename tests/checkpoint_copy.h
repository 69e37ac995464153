// Checkpoints of tests/data/checkpoints, as they are or changed.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/temporary.h"

namespace kvfold::testing {

using Json = nlohmann::ordered_json;

const std::string kCheckpoints = std::string(KVFOLD_SOURCE_DIR) + "/tests/data/checkpoints/";

// A checkpoint to be broken: a copy of one of tests/data/checkpoints.
class Copy {
 public:
  explicit Copy(const std::string& name) {
    for (const auto& entry : std::filesystem::directory_iterator(kCheckpoints + name))
      std::filesystem::copy(entry.path(), folder_.file(entry.path().filename().string()));
  }
  std::string path() const { return std::filesystem::path(folder_.file("")).parent_path().string(); }
  std::string file(const std::string& name) const { return folder_.file(name); }
  void write(const std::string& name, const std::string& text) const { folder_.write(name, text); }
  std::string read(const std::string& name) const { return TemporaryFolder::read(folder_.file(name)); }
  void remove(const std::string& name) const { std::filesystem::remove(folder_.file(name)); }
  void edit(const std::string& name, const std::function<void(Json&)>& change) const {
    Json json = std::filesystem::exists(file(name)) ? Json::parse(read(name)) : Json::object();
    change(json);
    write(name, json.dump());
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace kvfold::testing
