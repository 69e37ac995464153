#include "engine/tokenizer/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>

#include "engine/printable.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/spm.h"
#include "engine/tokenizer/utf8.h"

namespace kvfold {
namespace {

// Tokens that end a turn in the supported models, whatever the file calls its EOS.
constexpr std::string_view kEndNames[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>",
                                          "</s>"};
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::create(VocabularySource source,
                                                           std::shared_ptr<const void> storage) {
  if (source.model == "gpt2") return BpeTokenizer::create(std::move(source), std::move(storage));
  if (source.model == "llama") return SpmTokenizer::create(std::move(source), std::move(storage));
  return Status::error(
      fmt::format("tokenizer.ggml.model: found '{}', expected gpt2 (byte-level BPE) or llama (SPM)",
                  printable(source.model)));
}

Tokenizer::Tokenizer(VocabularySource source, std::shared_ptr<const void> storage)
    : source_(std::move(source)),
      storage_(std::move(storage)),
      map_(source_.tokens),
      end_tokens_(source_.end_tokens) {
  if (source_.eos >= 0) end_tokens_.push_back(source_.eos);
  for (const std::string_view name : kEndNames)
    if (const TokenId id = find(name); id >= 0 && is_control(id)) end_tokens_.push_back(id);
}

Status Tokenizer::read_special() {
  for (TokenId id = 0; id < size(); ++id) {
    const std::string_view text = source_.tokens[id];
    if (type(id) == TokenType::kByte && byte_token(id) < 0)
      return Status::error(
          fmt::format("tokenizer.ggml.tokens: byte token {}: expected <0x00> to <0xFF>", id));
    const bool in_text = type(id) == TokenType::kUserDefined && source_.symbols_in_text;
    if ((is_special(id) || type(id) == TokenType::kUnknown) && !in_text && !text.empty())
      special_[static_cast<unsigned char>(text[0])].push_back(id);
  }
  for (std::vector<TokenId>& ids : special_)
    std::stable_sort(ids.begin(), ids.end(), [&](TokenId a, TokenId b) {
      return source_.tokens[a].size() > source_.tokens[b].size();
    });
  return {};
}

Status Tokenizer::read_merges(MergeMap& merges) const {
  std::string merged;
  for (size_t rank = 0; rank < source_.merges.size(); ++rank) {
    const std::string_view merge = source_.merges[rank];
    const size_t space = merge.find(' ', 1);
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = space == std::string_view::npos ? "" : merge.substr(space + 1);
    merged.assign(left).append(right);
    const MergeMap::Merge entry{static_cast<int32_t>(rank), find(merged)};
    const TokenId left_id = find(left);
    const TokenId right_id = find(right);
    if (right.empty() || left_id < 0 || right_id < 0 || entry.merged < 0) {
      return Status::error(fmt::format(
          "tokenizer.ggml.merges: merge {}: expected two tokens of the vocabulary whose union is one", rank));
    }
    merges.add(left_id, right_id, entry);
  }
  return {};
}

int Tokenizer::byte_token(TokenId id) const {
  if (type(id) != TokenType::kByte) return -1;
  const std::string_view t = source_.tokens[id];
  if (t.size() != 6 || t.substr(0, 3) != "<0x" || t[5] != '>') return -1;
  const int high = hex_digit(t[3]);
  const int low = hex_digit(t[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

// The longest special token that `text` begins with, or -1.
TokenId Tokenizer::match_special(std::string_view text, bool control) const {
  for (const TokenId id : special_[static_cast<unsigned char>(text[0])])
    if (text.starts_with(source_.tokens[id]) && (control || type(id) == TokenType::kUserDefined)) return id;
  return -1;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<TokenId> ids;
  if (options.add_bos && source_.add_bos && source_.bos >= 0) ids.push_back(source_.bos);
  size_t begin = 0;
  Place place = Place::kBegin;
  for (size_t at = 0; at < text.size();) {
    const TokenId id = match_special(text.substr(at), options.parse_special);
    if (id < 0) {
      ++at;
      continue;
    }
    if (at > begin) encode_text(text.substr(begin, at - begin), place, ids);
    ids.push_back(id);
    place = Place::kBehindSpecial;
    begin = at += source_.tokens[id].size();
  }
  if (begin < text.size()) encode_text(text.substr(begin), place, ids);
  if (options.add_bos && source_.add_eos && source_.eos >= 0) ids.push_back(source_.eos);
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special) const {
  std::string out;
  Place place = Place::kBegin;
  for (size_t i = 0; i < ids.size(); ++i) {
    const TokenId id = ids[i];
    const std::string bytes = token_bytes(id, special);
    const bool in_text = type(id) == TokenType::kUserDefined && source_.symbols_in_text;
    if (is_special(id) && !in_text) {
      out += bytes;
      const bool added = i == 0 && source_.add_bos && id == source_.bos;
      if (!added) place = Place::kBehindSpecial;
      continue;
    }
    out += writes_space(place) && bytes.starts_with(' ') ? bytes.substr(1) : bytes;
    place = Place::kInside;
  }
  return out;
}

bool Tokenizer::is_end(TokenId id) const {
  return std::find(end_tokens_.begin(), end_tokens_.end(), id) != end_tokens_.end();
}

std::string StreamDecoder::push(TokenId id) {
  pending_ += tokenizer_.token_bytes(id);
  return take(false);
}

std::string StreamDecoder::finish() { return take(true); }

std::string StreamDecoder::take(bool final) {
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    const std::string_view rest = std::string_view(pending_).substr(at);
    size_t length = 0;
    const Utf8 state = utf8_first(rest, length);
    if (state == Utf8::kIncomplete && !final) break;
    if (state == Utf8::kValid) {
      out += rest.substr(0, length);
      at += length;
    } else {
      out += kReplacement;
      at += state == Utf8::kIncomplete ? rest.size() : 1;
    }
  }
  pending_.erase(0, at);
  return out;
}

}  // namespace kvfold
