// What `make corpus` makes (experiments/projector/make_corpus.py): texts, and sentences about people and
// places.
#pragma once

#include <string>
#include <vector>

#include "engine/status.h"

namespace kvfold {

// A line of documents.jsonl (experiments/projector/make_corpus.py).
struct CorpusText {
  std::string id;
  std::string split;  // train, dev, test
  std::string kind;
  std::string text;
};
// The document that a text is a part of, by its id: what stands before the last '#'. Parts of one document
// are about one thing, so it is documents that are drawn anew, not texts.
std::string document_of(const std::string& id);
// The lines of one split, `limit` at most where it is not 0. Errors name the file and the line: not JSON, a
// key missing or of another type, an id used twice in the whole file.
Result<std::vector<CorpusText>> read_corpus(const std::string& path, const std::string& split, int limit);

// A line of facts.jsonl.
struct Fact {
  std::string id, kind, text, name, city, twin_name, twin_city;
};
// `limit` at most of each kind where it is not 0. Errors: as read_corpus().
Result<std::vector<Fact>> read_facts(const std::string& path, int limit);

}  // namespace kvfold
