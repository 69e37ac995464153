// JSON files whose errors name the file and the key.
//
// Read strictly (engine/strict_json.h).
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/status.h"

namespace kvfold {

// A value as a message shows it: "the string 'x'", "the number 5", "an array".
std::string describe(const nlohmann::json& value);

// An object within a JSON file. Views and references that it gives live as long as any object of the file.
class JsonObject {
 public:
  // Errors: the file cannot be read, is no regular file (a pipe may never end), is not JSON (with the
  // offset), repeats a key, or holds no object.
  static Result<JsonObject> open(const std::string& path);
  // The same of a text that was read from `path`.
  static Result<JsonObject> parse(std::string_view text, const std::string& path);

  const std::string& path() const { return *path_; }
  // A key that is null counts as missing.
  bool has(std::string_view key) const { return find(key) != nullptr; }
  // Values by key. Errors: the key is missing, or its value is of another type; integers beyond int64.
  Result<int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;
  Result<JsonObject> object(std::string_view key) const;
  Result<const nlohmann::json*> array(std::string_view key) const;
  // `value`, which lies within this object and is called `name` in messages, as an object.
  Result<JsonObject> object_in(const nlohmann::json& value, const std::string& name) const;
  // As boolean(), but `fallback` where the key is missing.
  Result<bool> flag(std::string_view key, bool fallback) const;
  // Of this object: keys and values.
  const nlohmann::json& value() const { return *value_; }

  // The error "<path>: key '<key>': found <found>, expected <expected>", the key with all that lead to it.
  Status wrong(std::string_view key, std::string_view found, std::string_view expected) const;
  // Constrained, as a json could be made of anything.
  template <std::same_as<nlohmann::json> Json>
  Status wrong(std::string_view key, const Json& found, std::string_view expected) const {
    return wrong(key, std::string_view(describe(found)), expected);
  }

 private:
  const nlohmann::json* find(std::string_view key) const;
  Result<const nlohmann::json*> get(std::string_view key, std::string_view expected) const;

  std::shared_ptr<const std::string> path_;
  std::shared_ptr<const nlohmann::json> root_;
  const nlohmann::json* value_ = nullptr;  // of type object
  std::string prefix_;                     // "" or "model."
};

}  // namespace kvfold
