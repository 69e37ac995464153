// Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/token_map.h"
#include "engine/tokenizer/tokenizer.h"

namespace kvfold {

// The character by which the tokens of byte-level BPE write a byte, in UTF-8.
std::string_view byte_level_character(uint8_t byte);

class BpeTokenizer final : public Tokenizer {
 public:
  // Errors: an unknown pre-tokenizer, a merge that is not two known tokens whose union is known, bytes
  // without a token.
  static Result<std::shared_ptr<const Tokenizer>> create(VocabularySource source,
                                                         std::shared_ptr<const void> storage);

  std::string token_bytes(TokenId id, bool special) const override;

 protected:
  void encode_text(std::string_view text, Place place, std::vector<TokenId>& ids) const override;

 private:
  BpeTokenizer(VocabularySource source, std::shared_ptr<const void> storage);
  Status read_bytes();
  void encode_valid(std::string_view text, std::vector<TokenId>& ids) const;
  void encode_piece(std::string_view piece, std::vector<TokenId>& ids) const;
  TokenId whole_token(std::string_view piece) const;

  std::shared_ptr<const PreTokenizer> pre_tokenizer_;
  MergeMap merges_;
  std::array<TokenId, 256> byte_ids_{};  // the token of each single byte
};

}  // namespace kvfold
