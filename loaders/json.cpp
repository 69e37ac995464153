#include "loaders/json.h"

#include <fmt/core.h>

#include <limits>

#include "engine/file.h"
#include "engine/printable.h"
#include "engine/strict_json.h"

namespace kvfold {

using Json = nlohmann::json;

std::string describe(const Json& value) {
  switch (value.type()) {
    case Json::value_t::string:
      return fmt::format("the string '{}'", printable(value.get_ref<const std::string&>()));
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return fmt::format("an array of {}", value.size());
    case Json::value_t::boolean:
    case Json::value_t::null:
      return value.dump();
    default:
      return "the number " + value.dump();
  }
}

Result<JsonObject> JsonObject::open(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  const std::span<const std::byte> bytes = file->bytes();
  return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

Result<JsonObject> JsonObject::parse(std::string_view text, const std::string& path) {
  Result<Json> root = parse_json(text);
  if (!root.ok()) return root.status().with_prefix(path + ": ");
  JsonObject out;
  out.root_ = std::make_shared<const Json>(std::move(root.value()));
  if (!out.root_->is_object())
    return Status::error(fmt::format("{}: found {}, expected an object", path, describe(*out.root_)));
  out.path_ = std::make_shared<const std::string>(path);
  out.value_ = out.root_.get();
  return out;
}

Status JsonObject::wrong(std::string_view key, std::string_view found, std::string_view expected) const {
  return Status::error(
      fmt::format("{}: key '{}{}': found {}, expected {}", *path_, prefix_, printable(key), found, expected));
}

const Json* JsonObject::find(std::string_view key) const {
  const auto at = value_->find(std::string(key));
  return at == value_->end() || at->is_null() ? nullptr : &*at;
}

Result<const Json*> JsonObject::get(std::string_view key, std::string_view expected) const {
  const Json* value = find(key);
  if (value == nullptr) return wrong(key, "none", expected);
  return value;
}

Result<int64_t> JsonObject::integer(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const Json* value, get(key, "an integer"));
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<uint64_t>() > kMost))
    return wrong(key, *value, "an integer");
  return value->get<int64_t>();
}

Result<double> JsonObject::number(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const Json* value, get(key, "a number"));
  if (!value->is_number()) return wrong(key, *value, "a number");
  return value->get<double>();
}

Result<bool> JsonObject::boolean(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const Json* value, get(key, "true or false"));
  if (!value->is_boolean()) return wrong(key, *value, "true or false");
  return value->get<bool>();
}

Result<bool> JsonObject::flag(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  return boolean(key);
}

Result<std::string_view> JsonObject::string(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const Json* value, get(key, "a string"));
  if (!value->is_string()) return wrong(key, *value, "a string");
  return std::string_view(value->get_ref<const std::string&>());
}

Result<const Json*> JsonObject::array(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const Json* value, get(key, "an array"));
  if (!value->is_array()) return wrong(key, *value, "an array");
  return value;
}

Result<JsonObject> JsonObject::object(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const Json* value, get(key, "an object"));
  return object_in(*value, std::string(key));
}

Result<JsonObject> JsonObject::object_in(const Json& value, const std::string& name) const {
  if (!value.is_object()) return wrong(name, value, "an object");
  JsonObject out = *this;
  out.value_ = &value;
  out.prefix_ = prefix_ + printable(name) + ".";
  return out;
}

}  // namespace kvfold
