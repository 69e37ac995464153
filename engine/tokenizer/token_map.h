// From a token's text to its id: a flat hash whose keys stay where they are, in the model file.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

class TokenMap {
 public:
  // The first of equal tokens counts. `tokens` must live as long as the map.
  explicit TokenMap(const std::vector<std::string_view>& tokens);
  // -1 when there is none.
  TokenId find(std::string_view token) const;

 private:
  size_t slot(std::string_view token) const;
  const std::vector<std::string_view>* tokens_;
  std::vector<TokenId> slots_;  // open addressing; -1: empty
};

// From a pair of neighbouring tokens to what they merge into.
class MergeMap {
 public:
  struct Merge {
    int32_t rank = -1;  // -1: the pair does not merge
    TokenId merged = -1;
  };
  explicit MergeMap(size_t count);
  // The first of equal pairs counts.
  void add(TokenId left, TokenId right, Merge merge);
  Merge find(TokenId left, TokenId right) const;

 private:
  struct Entry {
    uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t slot(uint64_t pair) const;
  std::vector<Entry> entries_;
};

}  // namespace kvfold
