// tokenizer.model: a SentencePiece model in protobuf's wire format.
//
// Source: sentencepiece_model.proto of google/sentencepiece, and the encoding guide of Protocol Buffers.
#pragma once

#include <memory>
#include <string>

#include "engine/file.h"
#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

struct SentencePieceModel {
  VocabularySource source;
  std::shared_ptr<const void> storage;  // the mapped file, which the views in `source` point into
};

// A BPE model without a character map, as Llama's are. Errors: one line with the file, and the offset or the
// field that is malformed, or that asks for what is not supported (unigram models, normalisation).
Result<SentencePieceModel> read_sentencepiece_model(const std::string& path);
Result<SentencePieceModel> read_sentencepiece_model(std::shared_ptr<const MappedFile> file);

}  // namespace kvfold
