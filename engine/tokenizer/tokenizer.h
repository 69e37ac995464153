// Text to token ids and back.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

struct EncodeOptions {
  // Text such as "<|im_start|>" becomes the control token of that name; otherwise it is plain text.
  bool parse_special = true;
  // Begin with the vocabulary's BOS where the vocabulary says that it adds one.
  bool add_bos = true;
};

class Tokenizer {
 public:
  // Errors: an unknown tokenizer model or pre-tokenizer, a merge that is not two known tokens, ids out of range.
  // `storage` keeps the views inside `source` alive.
  static Result<std::shared_ptr<const Tokenizer>> create(VocabularySource source, std::shared_ptr<const void> storage);
  virtual ~Tokenizer() = default;

  // Any bytes are accepted; what is not UTF-8 is encoded byte by byte.
  virtual std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;
  // The bytes of one token. Control tokens give their name when `special` is set, else nothing.
  // REQUIRES: 0 <= id < size().
  virtual std::string token_bytes(TokenId id, bool special = true) const = 0;
  std::string decode(std::span<const TokenId> ids, bool special = true) const;

  int size() const { return static_cast<int>(source_.tokens.size()); }
  bool is_control(TokenId id) const;
  // Ends a generation: EOS and the end-of-turn tokens that the vocabulary knows by name.
  bool is_end(TokenId id) const;
  // The id of a token by its exact text in the vocabulary, or -1.
  virtual TokenId find(std::string_view token) const = 0;
  const VocabularySource& source() const { return source_; }

 protected:
  Tokenizer(VocabularySource source, std::shared_ptr<const void> storage);
  VocabularySource source_;
  std::shared_ptr<const void> storage_;
  std::vector<TokenId> end_tokens_;
};

// Decodes token by token for a person who watches: bytes of an unfinished UTF-8 character are held back until it is
// whole; bytes that can never become one come out as U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // The text that became complete with this token; possibly empty.
  std::string push(TokenId id);
  // What is left when no token follows, with U+FFFD for an unfinished character.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

}  // namespace kvfold
