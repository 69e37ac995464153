// The likeliest next tokens of a row of logits.
#pragma once

#include <span>

#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

struct TokenLogit {
  TokenId id;
  float logit;
};

// Whether `a` comes before `b`: by logit, NaN below all, of equal ones the lower id.
bool likelier(const TokenLogit& a, const TokenLogit& b);

// The out.size() likeliest of `logits`, likeliest first. REQUIRES: out.size() <= logits.size().
void find_likeliest(std::span<const float> logits, std::span<TokenLogit> out);

}  // namespace kvfold
