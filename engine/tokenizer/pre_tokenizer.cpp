#include "engine/tokenizer/pre_tokenizer.h"

#include <fmt/core.h>
#include <utf8proc.h>

#include <array>
#include <cstdlib>

#include "engine/tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace kvfold {
namespace {

// White space is written out: what PCRE2 calls \s also holds U+180E, which the models' own tokenizers do not.
#define WS R"(\t-\r\x{85}\p{Z})"

// The patterns are those of the models' own tokenizer definitions, with \s and \S so expanded.
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^)" WS R"(\p{L}\p{N}]+|[)" WS
                              R"(]+(?![^)" WS R"(])|[)" WS R"(]+)";
constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^)" WS R"(\p{L}\p{N}]+[\r\n]*|[)" WS
    R"(]*[\r\n]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS R"(]+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^)" WS
    R"(\p{L}\p{N}]+[\r\n]*|[)" WS R"(]*[\r\n]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS R"(]+)";

struct Definition {
  std::string_view name;
  std::array<const char*, 2> patterns;  // applied one after another, each to the pieces of the one before
  PreTokenizerTraits traits;
};

constexpr Definition kDefinitions[] = {
    {"smollm", {kDigit, kGpt2}, {false, false}},
    {"qwen2", {kQwen2, nullptr}, {true, false}},
    {"gpt-2", {kGpt2, nullptr}, {false, false}},
    {"llama-bpe", {kLlama3, nullptr}, {false, true}},
};

// A compiled pattern. Matching is const and may run on many threads.
class Pattern {
 public:
  explicit Pattern(const char* source) {
    int error = 0;
    size_t at = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source), PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &at, nullptr);
    KVFOLD_CHECK(code_ != nullptr);  // the patterns are our own
    // Without JIT (it may be missing from the build) matching is slower and the same.
    pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
  }
  ~Pattern() { pcre2_code_free(code_); }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // Matches and what lies between them, in order.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const {
    pcre2_match_data* match = pcre2_match_data_create_from_pattern(code_, nullptr);
    KVFOLD_CHECK(match != nullptr);
    size_t at = 0;
    while (at < text.size()) {
      const int found = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                    PCRE2_NO_UTF_CHECK, match, nullptr);
      if (found < 0) break;  // no match, or a limit of the library: the rest is one piece, never lost
      const size_t* range = pcre2_get_ovector_pointer(match);
      if (range[1] <= range[0]) break;
      if (range[0] > at) pieces.push_back(text.substr(at, range[0] - at));
      pieces.push_back(text.substr(range[0], range[1] - range[0]));
      at = range[1];
    }
    if (at < text.size()) pieces.push_back(text.substr(at));
    pcre2_match_data_free(match);
  }

 private:
  pcre2_code* code_;
};

class RegexPreTokenizer : public PreTokenizer {
 public:
  explicit RegexPreTokenizer(const Definition& definition) : first_(definition.patterns[0]) {
    traits_ = definition.traits;
    if (definition.patterns[1] != nullptr) second_ = std::make_unique<Pattern>(definition.patterns[1]);
  }
  void split(std::string_view text, std::vector<std::string_view>& pieces) const override {
    if (!second_) return first_.split(text, pieces);
    std::vector<std::string_view> coarse;
    first_.split(text, coarse);
    for (const std::string_view piece : coarse) second_->split(piece, pieces);
  }

 private:
  Pattern first_;
  std::unique_ptr<Pattern> second_;
};

}  // namespace

Result<std::shared_ptr<const PreTokenizer>> PreTokenizer::create(std::string_view name) {
  std::string known;
  for (const Definition& definition : kDefinitions) {
    if (definition.name == name)
      return std::shared_ptr<const PreTokenizer>(new RegexPreTokenizer(definition));
    known += (known.empty() ? "" : ", ") + std::string(definition.name);
  }
  return Status::error(
      fmt::format("tokenizer.ggml.pre: found '{}', expected one of {}", name.substr(0, 80), known));
}

std::string normalize_nfc(std::string_view text) {
  bool ascii = true;
  for (const char c : text) ascii &= static_cast<unsigned char>(c) < 0x80;
  if (ascii) return std::string(text);
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &out, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (length < 0) return std::string(text);
  std::string normal(reinterpret_cast<const char*>(out), static_cast<size_t>(length));
  std::free(out);
  return normal;
}

}  // namespace kvfold
