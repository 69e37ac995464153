#include "engine/tokenizer/bpe.h"

#include <fmt/core.h>

#include <queue>

#include "engine/tokenizer/utf8.h"

namespace kvfold {
namespace {

// GPT-2's alphabet writes every byte as a printable character: printable Latin-1 stands for itself, the other
// 68 bytes for U+0100 and up, in order.
struct Alphabet {
  std::array<std::string, 256> text;  // UTF-8 of each byte's character
  std::array<int, 0x180> bytes;       // byte of each character, or -1

  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      bytes[c] = b;
      utf8_append(c, text[b]);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet kAlphabet;
  return kAlphabet;
}

// The bytes that a token in the alphabet stands for; a character outside it stands for its own UTF-8.
std::string alphabet_to_bytes(std::string_view token) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    size_t length = 1;
    if (utf8_first(token.substr(at), length) != Utf8::kValid) length = 1;
    const std::string_view c = token.substr(at, length);
    const auto lead = static_cast<unsigned char>(c[0]);
    const int code = length == 1   ? lead
                     : length == 2 ? (lead & 31) << 6 | (static_cast<unsigned char>(c[1]) & 63)
                                   : -1;
    const int byte = code >= 0 && code < 0x180 ? alphabet().bytes[code] : -1;
    if (byte >= 0) {
      out += static_cast<char>(byte);
    } else {
      out += c;
    }
    at += length;
  }
  return out;
}

// Symbols of a piece as a linked list, merged in order of rank, leftmost first.
class Merger {
 public:
  explicit Merger(const MergeMap& merges) : merges_(merges) {}

  void add(TokenId id) {
    const auto n = static_cast<int>(symbols_.size());
    symbols_.push_back({id, n - 1, -1});
    if (n > 0) symbols_[n - 1].next = n;
  }

  void run(std::vector<TokenId>& ids) {
    for (int i = 0; i + 1 < static_cast<int>(symbols_.size()); ++i) consider(i);
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      apply(best);
    }
    for (int i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[i].next) ids.push_back(symbols_[i].id);
  }

 private:
  struct Symbol {
    TokenId id;
    int previous, next;
  };
  struct Candidate {
    int32_t rank;
    int left;
    TokenId left_id, right_id, merged;
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  void consider(int left) {
    if (left < 0 || symbols_[left].next < 0) return;
    const TokenId a = symbols_[left].id;
    const TokenId b = symbols_[symbols_[left].next].id;
    const MergeMap::Merge merge = merges_.find(a, b);
    if (merge.rank >= 0) queue_.push({merge.rank, left, a, b, merge.merged});
  }

  void apply(const Candidate& c) {
    Symbol& left = symbols_[c.left];
    // A candidate is stale when either of its symbols has been merged since; a merged-away symbol has id -1.
    if (left.id != c.left_id || left.next < 0 || symbols_[left.next].id != c.right_id) return;
    Symbol& right = symbols_[left.next];
    left.id = c.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols_[left.next].previous = c.left;
    consider(left.previous);
    consider(c.left);
  }

  const MergeMap& merges_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

std::string_view byte_level_character(uint8_t byte) { return alphabet().text[byte]; }

BpeTokenizer::BpeTokenizer(VocabularySource source, std::shared_ptr<const void> storage)
    : Tokenizer(std::move(source), std::move(storage)), merges_(source_.merges.size()) {}

Result<std::shared_ptr<const Tokenizer>> BpeTokenizer::create(VocabularySource source,
                                                              std::shared_ptr<const void> storage) {
  std::shared_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(std::move(source), std::move(storage)));
  KVFOLD_ASSIGN_OR_RETURN(tokenizer->pre_tokenizer_, PreTokenizer::create(tokenizer->source_.pre_tokenizer));
  KVFOLD_RETURN_IF_ERROR(tokenizer->read_bytes());
  KVFOLD_RETURN_IF_ERROR(tokenizer->read_merges(tokenizer->merges_));
  KVFOLD_RETURN_IF_ERROR(tokenizer->read_special());
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

Status BpeTokenizer::read_bytes() {
  for (int b = 0; b < 256; ++b) {
    TokenId id = find(alphabet().text[b]);
    if (id < 0) id = find(fmt::format("<0x{:02X}>", b));
    // -1: a byte that the vocabulary cannot write (SmolLM's lacks some). It is left out, as Hugging Face's
    // and llama.cpp's byte-level BPE do, unless a tokenizer.json names a token for it.
    byte_ids_[b] = id;
  }
  return {};
}

TokenId BpeTokenizer::whole_token(std::string_view piece) const {
  std::string text;
  for (const char c : piece) text += alphabet().text[static_cast<unsigned char>(c)];
  return find(text);
}

void BpeTokenizer::encode_piece(std::string_view piece, std::vector<TokenId>& ids) const {
  if (pre_tokenizer_->traits().ignore_merges) {
    if (const TokenId whole = whole_token(piece); whole >= 0) {
      ids.push_back(whole);
      return;
    }
  }
  Merger merger(merges_);
  bool lacked = false;  // the byte before
  for (const char c : piece) {
    const TokenId id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) {
      merger.add(id);
    } else if (source_.for_bytes >= 0 && !(lacked && source_.fuse_unknown)) {
      merger.add(source_.for_bytes);
    }
    lacked = id < 0;
  }
  merger.run(ids);
}

void BpeTokenizer::encode_valid(std::string_view text, std::vector<TokenId>& ids) const {
  std::string normal;
  if (pre_tokenizer_->traits().nfc) {
    normal = normalize_nfc(text);
    text = normal;
  }
  std::vector<std::string_view> pieces;
  pre_tokenizer_->split(text, pieces);
  for (const std::string_view piece : pieces) encode_piece(piece, ids);
}

void BpeTokenizer::encode_text(std::string_view text, Place, std::vector<TokenId>& ids) const {
  while (!text.empty()) {
    const size_t valid = utf8_valid_prefix(text);
    if (valid > 0) encode_valid(text.substr(0, valid), ids);
    // Bytes that are not UTF-8 have no characters to split by: each is a piece.
    size_t bad = valid;
    size_t length = 0;
    while (bad < text.size() && utf8_first(text.substr(bad), length) != Utf8::kValid) ++bad;
    for (size_t i = valid; i < bad; ++i) encode_piece(text.substr(i, 1), ids);
    text.remove_prefix(bad);
  }
}

std::string BpeTokenizer::token_bytes(TokenId id, bool special) const {
  if (is_special(id)) return special || !is_control(id) ? std::string(source_.tokens[id]) : std::string();
  if (const int byte = byte_token(id); byte >= 0) return std::string(1, static_cast<char>(byte));
  return alphabet_to_bytes(source_.tokens[id]);
}

}  // namespace kvfold
