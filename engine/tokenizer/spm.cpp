#include "engine/tokenizer/spm.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <queue>
#include <unordered_map>

#include "engine/text_hash.h"
#include "engine/tokenizer/utf8.h"

namespace kvfold {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, a space of the text

// Merges the symbols of one text, best pair first.
class Merger {
 public:
  Merger(const SpmTokenizer& tokenizer, std::string_view text, std::vector<SpmTokenizer::Symbol>& symbols)
      : tokenizer_(tokenizer), text_(text), symbols_(symbols) {}

  void run() {
    for (int i = 0; i + 1 < static_cast<int>(symbols_.size()); ++i) consider(i);
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      apply(best);
    }
  }
  // The bytes of the left half of the last candidate that made `piece`; 0 where none did.
  size_t left_half(std::string_view piece) const {
    const auto at = halves_.find(piece);
    return at == halves_.end() ? 0 : at->second;
  }

 private:
  struct Candidate {
    double priority;
    int left, right;
    size_t size;
    TokenId id;
    bool operator<(const Candidate& other) const {
      return priority != other.priority ? priority < other.priority : left > other.left;
    }
  };

  void consider(int left) {
    if (left < 0 || symbols_[left].next < 0) return;
    const SpmTokenizer::Symbol& a = symbols_[left];
    const SpmTokenizer::Symbol& b = symbols_[a.next];
    const auto merge = tokenizer_.merge(text_, a, b);
    if (!merge) return;
    queue_.push({merge->priority, left, a.next, a.size + b.size, merge->id});
    // Unused tokens take part in merging and are taken apart again in the end.
    if (tokenizer_.is_unused(merge->id)) halves_[text_.substr(a.begin, a.size + b.size)] = a.size;
  }

  void apply(const Candidate& c) {
    SpmTokenizer::Symbol& left = symbols_[c.left];
    SpmTokenizer::Symbol& right = symbols_[c.right];
    // Stale when either has been merged since; what was merged away has size 0.
    if (left.size == 0 || right.size == 0 || left.size + right.size != c.size) return;
    left.size = c.size;
    left.id = c.id;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols_[left.next].previous = c.left;
    consider(left.previous);
    consider(c.left);
  }

  const SpmTokenizer& tokenizer_;
  std::string_view text_;
  std::vector<SpmTokenizer::Symbol>& symbols_;
  std::priority_queue<Candidate> queue_;
  std::unordered_map<std::string_view, size_t, TextHash> halves_;
};

}  // namespace

SpmTokenizer::SpmTokenizer(VocabularySource source, std::shared_ptr<const void> storage)
    : Tokenizer(std::move(source), std::move(storage)) {}

Result<std::shared_ptr<const Tokenizer>> SpmTokenizer::create(VocabularySource source,
                                                              std::shared_ptr<const void> storage) {
  std::shared_ptr<SpmTokenizer> tokenizer(new SpmTokenizer(std::move(source), std::move(storage)));
  KVFOLD_RETURN_IF_ERROR(tokenizer->read_priorities());
  KVFOLD_RETURN_IF_ERROR(tokenizer->read_special());
  tokenizer->read_tokens();
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

Status SpmTokenizer::read_priorities() {
  if (source_.scores.empty()) {
    if (source_.merges.empty())
      return Status::error("tokenizer.ggml.scores: found none, expected one for each token");
    return read_merges(merges_.emplace(source_.merges.size()));
  }
  for (size_t i = 0; i < source_.scores.size(); ++i)
    if (std::isnan(source_.scores[i]))
      return Status::error(fmt::format(
          "tokenizer.ggml.scores: found one that is no number for token {}, expected numbers", i));
  return {};
}

void SpmTokenizer::read_tokens() {
  byte_ids_.fill(-1);
  for (TokenId id = 0; id < size(); ++id) {
    if (const int byte = byte_token(id); byte >= 0) byte_ids_[byte] = id;
    const std::string_view text = source_.tokens[id];
    if (source_.symbols_in_text && type(id) == TokenType::kUserDefined && !text.empty())
      user_defined_[static_cast<unsigned char>(text[0])].push_back(id);
  }
  for (std::vector<TokenId>& ids : user_defined_)
    std::ranges::stable_sort(ids, std::greater(), [&](TokenId id) { return source_.tokens[id].size(); });
}

TokenId SpmTokenizer::find_piece(std::string_view text) const {
  const TokenId id = find(text);
  if (id < 0) return -1;
  const TokenType kind = type(id);
  const bool text_may =
      kind == TokenType::kNormal || kind == TokenType::kUserDefined || kind == TokenType::kUnused;
  return text_may ? id : -1;
}

std::optional<SpmTokenizer::Merge> SpmTokenizer::merge(std::string_view text, const Symbol& left,
                                                       const Symbol& right) const {
  if (left.frozen || right.frozen) return {};
  if (merges_) {
    if (left.id < 0 || right.id < 0) return {};
    const MergeMap::Merge found = merges_->find(left.id, right.id);
    if (found.rank < 0) return {};
    return Merge{-static_cast<double>(found.rank), found.merged};
  }
  const TokenId id = find_piece(text.substr(left.begin, left.size + right.size));
  if (id < 0) return {};
  return Merge{source_.scores[id], id};
}

TokenId SpmTokenizer::user_defined_at(std::string_view text) const {
  for (const TokenId id : user_defined_[static_cast<unsigned char>(text[0])])
    if (text.starts_with(source_.tokens[id])) return id;
  return -1;
}

// Characters, and user-defined tokens as a whole.
std::vector<SpmTokenizer::Symbol> SpmTokenizer::split(std::string_view text) const {
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const auto n = static_cast<int>(symbols.size());
    Symbol symbol{at, 1, user_defined_at(rest), false, n - 1, -1};
    if (symbol.id >= 0) {
      symbol.size = source_.tokens[symbol.id].size();
      symbol.frozen = true;
    } else {
      size_t length = 1;
      if (utf8_first(rest, length) == Utf8::kValid) symbol.size = length;
      symbol.id = find_piece(rest.substr(0, symbol.size));
    }
    if (n > 0) symbols.back().next = n;
    at += symbol.size;
    symbols.push_back(symbol);
  }
  return symbols;
}

bool SpmTokenizer::writes_space(Place place) const {
  switch (source_.space_prefix) {
    case SpacePrefix::kNone:
      return false;
    case SpacePrefix::kText:
      return place == Place::kBegin;
    case SpacePrefix::kSegment:
      break;
  }
  return place != Place::kInside;
}

void SpmTokenizer::write_unknown(std::string_view bytes, std::vector<TokenId>& ids) const {
  bool all = true;
  for (const char c : bytes) all &= byte_ids_[static_cast<unsigned char>(c)] >= 0;
  if (all) {
    for (const char c : bytes) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  } else if (source_.unknown >= 0 && (ids.empty() || ids.back() != source_.unknown)) {
    ids.push_back(source_.unknown);  // once for all neighbours
  }
}

void SpmTokenizer::encode_text(std::string_view text, Place place, std::vector<TokenId>& ids) const {
  const bool begins_with_space = text.starts_with(' ') || text.starts_with(kSpace);
  std::string spaced;
  if (writes_space(place) && !(source_.one_space && begins_with_space)) spaced += kSpace;
  for (const char c : text) {
    if (c == ' ') {
      spaced += kSpace;
    } else {
      spaced += c;
    }
  }
  const std::string_view whole = spaced;
  std::vector<Symbol> symbols = split(whole);
  Merger merger(*this, whole, symbols);
  merger.run();
  // Pieces to be written, the next on top; an unused token is replaced by its halves.
  std::vector<std::string_view> pieces;
  for (int i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next) {
    const std::string_view piece = whole.substr(symbols[i].begin, symbols[i].size);
    if (symbols[i].id < 0) {
      write_unknown(piece, ids);
      continue;
    }
    if (!is_unused(symbols[i].id)) {
      ids.push_back(symbols[i].id);
      continue;
    }
    pieces.push_back(piece);
    while (!pieces.empty()) {
      const std::string_view top = pieces.back();
      pieces.pop_back();
      const TokenId id = find_piece(top);
      const size_t half = id >= 0 && is_unused(id) ? merger.left_half(top) : 0;
      if (half > 0) {
        pieces.push_back(top.substr(half));
        pieces.push_back(top.substr(0, half));
      } else if (id >= 0) {
        ids.push_back(id);
      } else {
        write_unknown(top, ids);
      }
    }
  }
}

std::string SpmTokenizer::token_bytes(TokenId id, bool special) const {
  const TokenType kind = type(id);
  if (kind == TokenType::kControl || kind == TokenType::kUnknown)
    return special ? std::string(source_.tokens[id]) : std::string();
  if (const int byte = byte_token(id); byte >= 0) return std::string(1, static_cast<char>(byte));
  if (kind == TokenType::kUserDefined && !source_.symbols_in_text) return std::string(source_.tokens[id]);
  std::string out;
  std::string_view rest = source_.tokens[id];
  for (size_t at = rest.find(kSpace); at != std::string_view::npos; at = rest.find(kSpace)) {
    out.append(rest.substr(0, at)) += ' ';
    rest.remove_prefix(at + kSpace.size());
  }
  return out.append(rest);
}

}  // namespace kvfold
