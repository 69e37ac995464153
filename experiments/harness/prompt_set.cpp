#include "experiments/harness/prompt_set.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>
#include <set>

#include "engine/file.h"

namespace kvfold {
namespace {

using nlohmann::json;

// Reads the keys of one object, and remembers which were asked for. The first error stays.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("expected an object");
  }

  std::string text(const char* key) {
    const json* value = find(key, &json::is_string, "a string");
    return value != nullptr ? value->get<std::string>() : "";
  }
  std::string text_or_null(const char* key) {
    if (object_.is_object() && object_.contains(key) && object_[key].is_null()) {
      asked_.insert(key);
      return "";
    }
    return text(key);
  }
  std::vector<std::string> texts(const char* key) {
    std::vector<std::string> out;
    const json* list = find(key, &json::is_array, "a list of strings");
    if (list == nullptr) return out;
    for (const json& value : *list) {
      if (!value.is_string()) return fail(fmt::format("{}: expected a list of strings", key)), out;
      out.push_back(value.get<std::string>());
    }
    return out;
  }
  std::map<std::string, std::string> map(const char* key) {
    std::map<std::string, std::string> out;
    const json* object = find(key, &json::is_object, "an object of strings");
    if (object == nullptr) return out;
    for (const auto& [name, value] : object->items()) {
      if (!value.is_string()) return fail(fmt::format("{}.{}: expected a string", key, name)), out;
      out[name] = value.get<std::string>();
    }
    return out;
  }
  Reader object(const char* key) {
    static const json kEmpty = json::object();
    const json* value = find(key, &json::is_object, "an object");
    return {value != nullptr ? *value : kEmpty, fmt::format("{} {}:", where_, key)};
  }

  // The first error, or that of a key that nobody asked for.
  Status finish() {
    if (object_.is_object())
      for (const auto& [key, value] : object_.items())
        if (!asked_.contains(key)) fail(fmt::format("{}: unknown key", key));
    return status_;
  }

 private:
  const json* find(const char* key, bool (json::*is)() const noexcept, const char* expected) {
    asked_.insert(key);
    if (!object_.is_object()) return nullptr;
    const auto at = object_.find(key);
    if (at == object_.end()) return fail(fmt::format("{}: missing", key)), nullptr;
    if (!((*at).*is)())
      return fail(fmt::format("{}: found {}, expected {}", key, at->type_name(), expected)), nullptr;
    return &*at;
  }
  void fail(const std::string& what) {
    if (status_.ok()) status_ = Status::error(fmt::format("{} {}", where_, what));
  }

  const json& object_;
  std::string where_;
  std::set<std::string> asked_;
  Status status_;
};

Result<Trial> read_trial(const json& object, const std::string& where) {
  Reader in(object, where);
  Trial t;
  t.id = in.text("id");
  t.phase = in.text("phase");
  t.family = in.text("family");
  t.set = in.text("set");
  t.item = in.text("item");
  t.source = in.text("source");
  t.target = in.text("target");
  t.markers = in.texts("markers");
  t.answer = in.text("answer");
  Reader contrast = in.object("contrast");
  t.contrast = {contrast.text("prefix"), contrast.text("marker"), contrast.text("twin")};
  Reader twin = in.object("twin");
  t.twin = {twin.text("source"), twin.texts("markers"), twin.text("answer")};
  t.mismatched = in.text("mismatched");
  t.decoys = in.texts("decoys");
  t.filler = in.text("filler");
  t.mode = in.text_or_null("mode");
  t.entity = in.text_or_null("entity");
  t.truth_markers = in.texts("truth_markers");
  t.probes = in.map("probes");
  KVFOLD_RETURN_IF_ERROR(in.finish());
  KVFOLD_RETURN_IF_ERROR(contrast.finish());
  KVFOLD_RETURN_IF_ERROR(twin.finish());
  if (t.set != "plan" && t.set != "calibration" && t.set != "test")
    return Status::error(fmt::format("{} set: found '{}', expected plan, calibration or test", where, t.set));
  if (t.markers.empty()) return Status::error(where + " markers: expected at least one");
  return t;
}

}  // namespace

const Trial& PromptSet::by_id(const std::string& id) const {
  const auto at = index_.find(id);
  KVFOLD_CHECK(at != index_.end());
  return trials[at->second];
}

Result<PromptSet> load_prompt_set(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  return parse_prompt_set(text, path);
}

Result<PromptSet> parse_prompt_set(const std::string& text, const std::string& path) {
  PromptSet out;
  out.path = path;
  out.hash = fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
  std::vector<std::string> places;
  int number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string where = fmt::format("{}:{}:", path, ++number);
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    if (line.empty()) continue;
    const json object = json::parse(line, nullptr, false);
    if (object.is_discarded()) return Status::error(where + " expected JSON");
    KVFOLD_ASSIGN_OR_RETURN(Trial trial, read_trial(object, where));
    if (!out.index_.emplace(trial.id, out.trials.size()).second)
      return Status::error(fmt::format("{} id: '{}' is used twice", where, trial.id));
    out.trials.push_back(std::move(trial));
    places.push_back(where);
  }
  for (size_t i = 0; i < out.trials.size(); ++i) {
    const Trial& trial = out.trials[i];
    if (trial.mismatched == trial.id || !out.index_.contains(trial.mismatched))
      return Status::error(
          fmt::format("{} mismatched: found '{}', expected another trial's id", places[i], trial.mismatched));
  }
  if (out.trials.empty()) return Status::error(path + ": expected at least one trial");
  return out;
}

}  // namespace kvfold
