#include "engine/tokenizer/token_map.h"

#include <bit>

#include "engine/text_hash.h"

namespace kvfold {
namespace {

// Half full at most, so that probes stay short.
size_t table_size(size_t count) { return std::bit_ceil(2 * count + 2); }

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

TokenMap::TokenMap(const std::vector<std::string_view>& tokens)
    : tokens_(&tokens), slots_(table_size(tokens.size()), -1) {
  for (size_t id = 0; id < tokens.size(); ++id) {
    TokenId& at = slots_[slot(tokens[id])];
    if (at < 0) at = static_cast<TokenId>(id);
  }
}

size_t TokenMap::slot(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  size_t at = TextHash()(token) & mask;
  while (slots_[at] >= 0 && (*tokens_)[static_cast<size_t>(slots_[at])] != token) at = (at + 1) & mask;
  return at;
}

TokenId TokenMap::find(std::string_view token) const { return slots_[slot(token)]; }

MergeMap::MergeMap(size_t count) : entries_(table_size(count)) {}

size_t MergeMap::slot(uint64_t pair) const {
  const size_t mask = entries_.size() - 1;
  // The finaliser of MurmurHash3: pairs of small numbers spread over the table.
  uint64_t h = pair ^ hash_seed();
  h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCDU;
  h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53U;
  size_t at = (h ^ (h >> 33)) & mask;
  while (entries_[at].pair != kEmpty && entries_[at].pair != pair) at = (at + 1) & mask;
  return at;
}

void MergeMap::add(TokenId left, TokenId right, Merge merge) {
  Entry& entry = entries_[slot(pair_key(left, right))];
  if (entry.pair == kEmpty) entry = {pair_key(left, right), merge};
}

MergeMap::Merge MergeMap::find(TokenId left, TokenId right) const {
  return entries_[slot(pair_key(left, right))].merge;
}

}  // namespace kvfold
