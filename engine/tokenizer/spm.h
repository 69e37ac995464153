// Llama's SentencePiece tokenizer: characters merged pair by pair, and bytes for what the vocabulary lacks.
//
// Source: the BPE model of google/sentencepiece (Kudo and Richardson 2018). Spaces are written as U+2581. The
// pair whose union scores highest is merged first, the leftmost of equals; a vocabulary that lists merges in
// place of scores, as tokenizer.json does, has its lowest rank merged first.
//
// Bytes that are not UTF-8 become byte tokens, so that every text comes back as it was; SentencePiece itself
// makes U+FFFD of them.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "engine/tokenizer/token_map.h"
#include "engine/tokenizer/tokenizer.h"

namespace kvfold {

class SpmTokenizer final : public Tokenizer {
 public:
  // Errors: neither scores nor merges, a score that is no number, a merge that is not two known tokens whose
  // union is known.
  static Result<std::shared_ptr<const Tokenizer>> create(VocabularySource source,
                                                         std::shared_ptr<const void> storage);

  std::string token_bytes(TokenId id, bool special) const override;

  // Bytes [begin, begin + size) of a text that is being merged.
  struct Symbol {
    size_t begin, size;
    TokenId id;          // -1: the vocabulary lacks it
    bool frozen;         // a user-defined token, which never merges
    int previous, next;  // -1: none
  };
  struct Merge {
    double priority;  // the highest goes first
    TokenId id;
  };
  // What two neighbours in `text` make together; nothing where they do not merge.
  std::optional<Merge> merge(std::string_view text, const Symbol& left, const Symbol& right) const;

 protected:
  void encode_text(std::string_view text, Place place, std::vector<TokenId>& ids) const override;
  bool writes_space(Place place) const override;

 private:
  SpmTokenizer(VocabularySource source, std::shared_ptr<const void> storage);
  Status read_priorities();
  void read_tokens();
  TokenId user_defined_at(std::string_view text) const;
  std::vector<Symbol> split(std::string_view text) const;
  // The token of a text, if it is one that text may become.
  TokenId find_piece(std::string_view text) const;
  void write_unknown(std::string_view bytes, std::vector<TokenId>& ids) const;

  std::optional<MergeMap> merges_;       // in place of scores
  std::array<TokenId, 256> byte_ids_{};  // -1: none
  // By first byte, longest first: those that are matched behind the space prefix.
  std::array<std::vector<TokenId>, 256> user_defined_;
};

}  // namespace kvfold
