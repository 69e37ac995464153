// Text to token ids and back.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/status.h"
#include "engine/tokenizer/token_map.h"
#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

struct EncodeOptions {
  // Text such as "<|im_start|>" becomes the control token of that name; otherwise it is plain text.
  bool parse_special = true;
  // Begin with the vocabulary's BOS, and end with its EOS, where the vocabulary says that it adds them.
  bool add_bos = true;
};

class Tokenizer {
 public:
  // Errors: an unknown tokenizer model or pre-tokenizer, a merge that is not of known tokens, a byte token
  // that names no byte. `storage` keeps the views inside `source` alive.
  static Result<std::shared_ptr<const Tokenizer>> create(VocabularySource source,
                                                         std::shared_ptr<const void> storage);
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Any bytes are accepted; what is not UTF-8 is encoded byte by byte.
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // The bytes of one token. Control tokens give their name when `special` is set, else nothing.
  // REQUIRES: 0 <= id < size().
  virtual std::string token_bytes(TokenId id, bool special = true) const = 0;
  // The text that encode() made these of: without the spaces that it writes before a text. In the middle of a
  // text take the bytes of each token, or StreamDecoder.
  std::string decode(std::span<const TokenId> ids, bool special = true) const;

  int size() const { return static_cast<int>(source_.tokens.size()); }
  bool is_control(TokenId id) const { return type(id) == TokenType::kControl; }
  bool is_unused(TokenId id) const { return type(id) == TokenType::kUnused; }
  // Ends a generation: EOS, what the model's files name as such, and the end-of-turn tokens that the
  // vocabulary knows by name.
  bool is_end(TokenId id) const;
  // The id of a token by its exact text in the vocabulary, or -1.
  TokenId find(std::string_view token) const { return map_.find(token); }
  const VocabularySource& source() const { return source_; }

 protected:
  Tokenizer(VocabularySource source, std::shared_ptr<const void> storage);

  // Where a piece of text between special tokens stands.
  enum class Place {
    kBegin,          // at the begin of the whole
    kBehindSpecial,  // behind a special token
    kInside,         // behind other text
  };
  // Ids of text in which no special token is to be found.
  virtual void encode_text(std::string_view text, Place place, std::vector<TokenId>& ids) const = 0;
  // Whether encode_text() writes a space before text at this place.
  virtual bool writes_space(Place) const { return false; }

  TokenType type(TokenId id) const { return source_.types.empty() ? TokenType::kNormal : source_.types[id]; }
  // Matched in the text as a whole, and written literally.
  bool is_special(TokenId id) const { return is_control(id) || type(id) == TokenType::kUserDefined; }
  // The byte of a token such as <0x0A>, or -1 for every other token.
  int byte_token(TokenId id) const;
  // Prepares the search for special tokens. Errors: a byte token that names no byte.
  Status read_special();
  // Errors: a merge that is not two known tokens whose union is known.
  Status read_merges(MergeMap& merges) const;

  VocabularySource source_;

 private:
  TokenId match_special(std::string_view text, bool control) const;

  std::shared_ptr<const void> storage_;
  TokenMap map_;
  std::vector<TokenId> end_tokens_;
  std::array<std::vector<TokenId>, 256> special_;  // by first byte, longest first
};

// Decodes token by token for a person who watches: bytes of an unfinished UTF-8 character are held back until
// it is whole; bytes that can never become one come out as U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // The text that became complete with this token; possibly empty.
  std::string push(TokenId id);
  // What is left when no token follows, with U+FFFD for an unfinished character.
  std::string finish();

 private:
  std::string take(bool final);
  const Tokenizer& tokenizer_;
  std::string pending_;
};

}  // namespace kvfold
