// One text in the tokens of two models, and which row of the one is which row of the other.
#pragma once

#include <string_view>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace kvfold {

struct AlignedTokens {
  std::vector<TokenId> source, target;  // the text in each model's tokens
  // [target.size()]: for each target token the source token that holds its last byte, so the first source row
  // that has seen all that the target row has seen. Never falls.
  std::vector<int> source_row;
};

// Errors: the text has no tokens; a tokenizer changes the text (its tokens, put together, are not the text),
// so that offsets mean nothing.
Result<AlignedTokens> align(const Tokenizer& source, const Tokenizer& target, std::string_view text);
// The same for tokens that are there already, such as a cache's. Errors: as above, and the two have different
// texts.
Result<AlignedTokens> align(const Tokenizer& source, std::span<const TokenId> source_tokens,
                            const Tokenizer& target, std::span<const TokenId> target_tokens);

}  // namespace kvfold
