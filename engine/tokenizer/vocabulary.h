// The tokenizer's data as a model file holds it. Views point into the file's mapping: no string is copied.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvfold {

using TokenId = int32_t;

// GGUF's tokenizer.ggml.token_type values.
enum class TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// Where an SPM vocabulary writes a space that the text does not hold.
enum class SpacePrefix {
  kNone,
  kText,     // before the text
  kSegment,  // before the text and behind every special token
};

struct VocabularySource {
  std::string model;                     // tokenizer.ggml.model: "gpt2" is byte-level BPE, "llama" is SPM
  std::string pre_tokenizer;             // tokenizer.ggml.pre: "smollm", "qwen2", "gpt-2", "llama-bpe"
  std::vector<std::string_view> tokens;  // [vocab_size], in the byte-level alphabet for "gpt2"
  std::vector<std::string_view> merges;  // "left right", by rank
  std::vector<TokenType> types;          // [vocab_size], or empty: all normal
  std::vector<float> scores;             // [vocab_size], or empty; where there are some, "llama" goes by them
  std::string_view chat_template;        // Jinja source, or empty
  TokenId bos = -1, eos = -1, unknown = -1, padding = -1;  // -1: none
  std::vector<TokenId> end_tokens;                         // end a generation, besides eos
  bool add_bos = false;
  bool add_eos = false;
  // "gpt2" only: what is written for a byte that has no token, and whether once for neighbours
  // (tokenizer.json's unk_token and fuse_unk; a GGUF file's unknown token is not for that). -1: it is left
  // out.
  TokenId for_bytes = -1;
  bool fuse_unknown = false;
  // "llama" only:
  SpacePrefix space_prefix = SpacePrefix::kSegment;
  bool one_space = false;  // no prefix where the text begins with a space of its own
  // User-defined tokens are matched with the space prefix before the text and spaces as U+2581, as
  // SentencePiece does; otherwise they are taken out of the text first, as control tokens are.
  bool symbols_in_text = false;
};

}  // namespace kvfold
