// The tokenizer of a Hugging Face checkpoint: tokenizer.json, or else tokenizer.model, with
// tokenizer_config.json and chat_template.jinja.
//
// Source: the serialisation of huggingface/tokenizers. Two kinds are read: byte-level BPE whose pre-tokenizer
// is one of those that engine/tokenizer knows by name, and BPE over UTF-8 with byte fallback, which is how
// Llama's SentencePiece vocabularies are converted. All else is refused.
#pragma once

#include <memory>
#include <string>

#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"
#include "loaders/checkpoint_config.h"

namespace kvfold {

struct CheckpointVocabulary {
  VocabularySource source;
  std::shared_ptr<const void> storage;  // keeps the views in `source` alive
};

// The vocabulary has config.model.vocab_size tokens: ids that tokenizer.json leaves out are unused tokens.
// Errors: one line with the file and the key.
Result<CheckpointVocabulary> read_checkpoint_vocabulary(const std::string& folder,
                                                        const CheckpointConfig& config);

// The vocabulary alone of a tokenizer.json or a tokenizer.model, with the files beside it; as many tokens as
// it has.
Result<CheckpointVocabulary> read_tokenizer_file(const std::string& path);

}  // namespace kvfold
