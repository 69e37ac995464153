#include "engine/strict_json.h"

#include <fmt/core.h>

#include <functional>
#include <string>
#include <unordered_set>
#include <vector>

#include "engine/printable.h"
#include "engine/text_hash.h"

namespace kvfold {
namespace {

using Json = nlohmann::json;

// Where `text` goes deeper than `most` levels; npos where it does not.
size_t too_deep(std::string_view text, int most) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > most) return i;
  }
  return std::string_view::npos;
}

// The first key that an object repeats, found as the parser passes by.
class RepeatedKey {
 public:
  bool operator()(int depth, Json::parse_event_t event, const Json& value) {
    const auto level = static_cast<size_t>(depth);
    if (event == Json::parse_event_t::object_start) {
      if (keys_.size() <= level) keys_.resize(level + 1);
      keys_[level].clear();
    } else if (event == Json::parse_event_t::key && name.empty()) {
      const auto& key = value.get_ref<const std::string&>();
      // Keys of an object stand one level below its start.
      if (!keys_[level - 1].insert(key).second) name = key.empty() ? "(empty)" : key;
    }
    return true;
  }
  std::string name;

 private:
  // Of the objects around the parser, outermost first.
  std::vector<std::unordered_set<std::string, TextHash>> keys_;
};

}  // namespace

Result<Json> parse_json(std::string_view text, int most_levels) {
  if (const size_t null = text.find('\0'); null != std::string_view::npos)
    return Status::error(fmt::format("found a null byte at offset {}, expected JSON", null));
  if (const size_t at = too_deep(text, most_levels); at != std::string_view::npos)
    return Status::error(
        fmt::format("found level {} at offset {}, expected at most {}", most_levels + 1, at, most_levels));
  RepeatedKey repeated;
  Json out;
  try {
    out = Json::parse(text, std::ref(repeated));
  } catch (const Json::parse_error& error) {
    return Status::error(fmt::format("not JSON near offset {}", error.byte));
  } catch (const Json::out_of_range&) {
    return Status::error("found a number beyond 1e308, expected numbers that a double holds");
  }
  if (!repeated.name.empty())
    return Status::error(fmt::format("key '{}' stands twice", printable(repeated.name)));
  return out;
}

}  // namespace kvfold
