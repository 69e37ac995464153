// The smallest files of each kind: what fuzzing begins with, and the vocabularies that it encodes over. They
// differ in what they exercise (both tokenizers, every kind of metadata value, blocks and floats, whole and
// ragged caches), and are small because most mutants of a large file differ in its weights alone.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/kv/cache_file.h"
#include "engine/tokenizer/tokenizer.h"

namespace kvfold::fuzz {

struct Seed {
  std::string target, name, bytes;
};
// Written to tests/fuzz/corpus by fuzz_make_corpus.
std::vector<Seed> seeds();

// What the cache files among them are of, and what exported ones are imported as.
CacheModelInfo small_cache_model();

// Vocabularies that can write every byte.
std::shared_ptr<const Tokenizer> small_bpe();
std::shared_ptr<const Tokenizer> small_spm();

}  // namespace kvfold::fuzz
