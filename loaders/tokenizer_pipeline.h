// The steps of a tokenizer.json around its vocabulary: normaliser, pre-tokenizer, post-processor and decoder,
// brought to the names and flags that engine/tokenizer knows.
#pragma once

#include <cstdint>
#include <string>

#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"
#include "loaders/json.h"

namespace kvfold {

struct TokenizerPipeline {
  bool byte_fallback = false;  // BPE over UTF-8 with <0x00> to <0xFF>, as SPM; otherwise byte-level BPE
  std::string pre_tokenizer;   // of byte-level BPE: a name that PreTokenizer::create takes
  SpacePrefix space_prefix = SpacePrefix::kNone;
  bool one_space = false;              // see VocabularySource
  std::string begin_token, end_token;  // written around every text; empty: none
  int64_t begin_id = -1, end_id = -1;  // what the file has them written as; -1: it does not say
  // A normaliser changes texts. Added tokens are matched before it, as those with "normalized": false are.
  bool normalizes = false;
};

// Errors: a step, or an option of one, that is none of the known combinations; one line with file and key.
Result<TokenizerPipeline> read_tokenizer_pipeline(const JsonObject& json);

}  // namespace kvfold
