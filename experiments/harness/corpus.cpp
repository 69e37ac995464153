#include "experiments/harness/corpus.h"

#include <fmt/core.h>

#include <fstream>
#include <map>
#include <set>

#include "loaders/json.h"

namespace kvfold {

std::string document_of(const std::string& id) { return id.substr(0, id.rfind('#')); }

Result<std::vector<CorpusText>> read_corpus(const std::string& path, const std::string& split, int limit) {
  std::ifstream file(path);
  if (!file) return Status::error(fmt::format("{}: cannot be read (make corpus makes it)", path));
  std::vector<CorpusText> out;
  std::set<std::string> ids;
  int number = 0;
  for (std::string content; std::getline(file, content);) {
    JsonObject line;
    KVFOLD_ASSIGN_OR_RETURN(line, JsonObject::parse(content, fmt::format("{}:{}", path, ++number)));
    CorpusText text;
    KVFOLD_ASSIGN_OR_RETURN(text.id, line.string("id"));
    KVFOLD_ASSIGN_OR_RETURN(text.split, line.string("split"));
    KVFOLD_ASSIGN_OR_RETURN(text.kind, line.string("kind"));
    KVFOLD_ASSIGN_OR_RETURN(text.text, line.string("text"));
    if (!ids.insert(text.id).second)
      return line.wrong("id", line.value()["id"], "one that no other text has");
    if (text.split == split && (limit == 0 || static_cast<int>(out.size()) < limit))
      out.push_back(std::move(text));
  }
  if (out.empty()) return Status::error(fmt::format("{}: no texts of the split '{}'", path, split));
  return out;
}

Result<std::vector<Fact>> read_facts(const std::string& path, int limit) {
  std::ifstream file(path);
  if (!file) return Status::error(fmt::format("{}: cannot be read (make corpus makes it)", path));
  std::vector<Fact> out;
  std::map<std::string, int> taken;
  int number = 0;
  for (std::string content; std::getline(file, content);) {
    JsonObject line;
    KVFOLD_ASSIGN_OR_RETURN(line, JsonObject::parse(content, fmt::format("{}:{}", path, ++number)));
    Fact fact;
    const std::pair<const char*, std::string*> keys[] = {{"id", &fact.id},
                                                         {"kind", &fact.kind},
                                                         {"text", &fact.text},
                                                         {"name", &fact.name},
                                                         {"city", &fact.city},
                                                         {"twin_name", &fact.twin_name},
                                                         {"twin_city", &fact.twin_city}};
    for (const auto& [key, value] : keys) {
      KVFOLD_ASSIGN_OR_RETURN(*value, line.string(key));
    }
    if (limit == 0 || taken[fact.kind]++ < limit) out.push_back(std::move(fact));
  }
  if (out.empty()) return Status::error(fmt::format("{}: no facts", path));
  return out;
}

}  // namespace kvfold
