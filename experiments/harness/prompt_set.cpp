#include "experiments/harness/prompt_set.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <set>

#include "engine/file.h"
#include "loaders/json.h"

namespace kvfold {
namespace {

// Reads the keys of one object, and remembers which were asked for. The first error stays.
class Reader {
 public:
  explicit Reader(JsonObject object) : object_(std::move(object)) {}

  std::string text(const std::string& key) {
    asked_.insert(key);
    const Result<std::string_view> value = object_.string(key);
    keep(value.status());
    return value.ok() ? std::string(*value) : "";
  }
  std::string text_or_null(const char* key) {
    asked_.insert(key);
    return object_.value().contains(key) && !object_.has(key) ? "" : text(key);
  }
  std::vector<std::string> texts(const char* key) {
    asked_.insert(key);
    const auto list = object_.array(key);
    keep(list.status());
    std::vector<std::string> out;
    if (!list.ok()) return out;
    for (const nlohmann::json& value : **list) {
      if (!value.is_string()) return keep(object_.wrong(key, value, "strings alone")), out;
      out.push_back(value.get<std::string>());
    }
    return out;
  }
  std::map<std::string, std::string> map(const char* key) {
    std::map<std::string, std::string> out;
    Reader in = object(key);
    for (const auto& [name, value] : in.object_.value().items()) out[name] = in.text(name);
    keep(in.finish());
    return out;
  }
  Reader object(const char* key) {
    asked_.insert(key);
    Result<JsonObject> inner = object_.object(key);
    keep(inner.status());
    // Of one that is missing this error is the first, and whatever it lacks comes after.
    return Reader(inner.ok() ? *std::move(inner) : object_);
  }

  // The first error, or that of a key that nobody asked for.
  Status finish() {
    for (const auto& [key, value] : object_.value().items())
      if (!asked_.contains(key)) keep(object_.wrong(key, value, "no such key"));
    return status_;
  }

 private:
  void keep(const Status& status) {
    if (status_.ok()) status_ = status;
  }

  JsonObject object_;
  std::set<std::string> asked_;
  Status status_;
};

Result<Trial> read_trial(const JsonObject& object) {
  Reader in(object);
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
    return object.wrong("set", object.value()["set"], "plan, calibration or test");
  if (t.markers.empty()) return object.wrong("markers", "none", "at least one");
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
  std::vector<JsonObject> lines;
  int number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    ++number;
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.empty()) continue;
    JsonObject object;
    KVFOLD_ASSIGN_OR_RETURN(object, JsonObject::parse(line, fmt::format("{}:{}", path, number)));
    KVFOLD_ASSIGN_OR_RETURN(Trial trial, read_trial(object));
    if (!out.index_.emplace(trial.id, out.trials.size()).second)
      return object.wrong("id", object.value()["id"], "one that no other trial has");
    out.trials.push_back(std::move(trial));
    lines.push_back(std::move(object));
  }
  for (size_t i = 0; i < out.trials.size(); ++i) {
    const Trial& trial = out.trials[i];
    if (trial.mismatched == trial.id || !out.index_.contains(trial.mismatched))
      return lines[i].wrong("mismatched", lines[i].value()["mismatched"], "another trial's id");
  }
  if (out.trials.empty()) return Status::error(path + ": expected at least one trial");
  return out;
}

}  // namespace kvfold
