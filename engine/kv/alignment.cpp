#include "engine/kv/alignment.h"

#include <fmt/core.h>

namespace kvfold {
namespace {

// A text, and where each of its tokens ends in it.
struct Offsets {
  std::string text;
  std::vector<size_t> ends;

  Offsets(const Tokenizer& tokenizer, std::span<const TokenId> ids) {
    for (const TokenId id : ids) {
      // A BOS that the tokenizer puts before every text is no part of it.
      const bool added = ends.empty() && tokenizer.source().add_bos && id == tokenizer.source().bos;
      if (!added) text += tokenizer.token_bytes(id);
      ends.push_back(text.size());
    }
  }
  // Drops the space that SPM writes before a text.
  void drop_first() {
    text.erase(0, 1);
    for (size_t& end : ends) end -= end > 0 ? 1 : 0;
  }
};

// Texts that do not say the same, from where they differ.
std::string difference(const std::string& a, const std::string& b) {
  size_t at = 0;
  while (at < a.size() && at < b.size() && a[at] == b[at]) ++at;
  return fmt::format("at byte {} of {} and {}", at, a.size(), b.size());
}

}  // namespace

Result<AlignedTokens> align(const Tokenizer& source, std::span<const TokenId> source_tokens,
                            const Tokenizer& target, std::span<const TokenId> target_tokens) {
  if (source_tokens.empty() || target_tokens.empty()) return Status::error("align: a text without tokens");
  Offsets from(source, source_tokens);
  Offsets to(target, target_tokens);
  if (from.text == " " + to.text) from.drop_first();
  if (to.text == " " + from.text) to.drop_first();
  if (from.text != to.text)
    return Status::error("align: the tokens of the two models are not of one text: they differ " +
                         difference(from.text, to.text));
  AlignedTokens out;
  out.source.assign(source_tokens.begin(), source_tokens.end());
  out.target.assign(target_tokens.begin(), target_tokens.end());
  size_t row = 0;
  for (const size_t end : to.ends) {
    while (from.ends[row] < end) ++row;
    out.source_row.push_back(static_cast<int>(row));
  }
  return out;
}

Result<AlignedTokens> align(const Tokenizer& source, const Tokenizer& target, std::string_view text) {
  return align(source, source.encode(text), target, target.encode(text));
}

}  // namespace kvfold
