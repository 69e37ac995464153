#include "engine/tokenizer/pre_tokenizer.h"

#include <fmt/core.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>

#include "engine/printable.h"
#include "engine/tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace kvfold {
namespace {

// What stands inside of [] for white space, letters and numbers.
// White space is written out: what PCRE2 calls \s also holds U+180E, which the models' own tokenizers do not.
#define WS R"(\t-\r\x{85}\p{Z})"
// Unicode 15 and 16 added letters and numbers that an installed PCRE2 may not know yet (10.42 has Unicode
// 14).
#define LETTER                                                                                   \
  R"(\p{L})"                                                                                     \
  R"(\x{1C89}-\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D4A}-\x{10D65})" \
  R"(\x{10D6F}-\x{10D85}\x{10EC2}-\x{10EC4}\x{1123F}-\x{11240}\x{11380}-\x{11389}\x{1138B})"     \
  R"(\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3}\x{11BC0}-\x{11BE0}\x{11F02})"       \
  R"(\x{11F04}-\x{11F10}\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446}\x{13460}-\x{143FA})"     \
  R"(\x{16100}-\x{1611D}\x{16D40}-\x{16D6C}\x{18CFF}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A})"      \
  R"(\x{1E030}-\x{1E06D}\x{1E4D0}-\x{1E4EB}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2B739})"               \
  R"(\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})"
#define NUMBER                                                                      \
  R"(\p{N})"                                                                        \
  R"(\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59})" \
  R"(\x{16130}-\x{16139}\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1D2C0}-\x{1D2D3})" \
  R"(\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA})"

// The patterns are those of the models' own tokenizer definitions.
#define CONTRACTION "'s|'t|'re|'ve|'m|'ll|'d"
#define SPACES "[" WS "]+(?![^" WS "])|[" WS "]+"
#define LLAMA3(numbers)                                                                              \
  "(?i:" CONTRACTION R"()|[^\r\n)" LETTER NUMBER "]?[" LETTER "]+|" numbers "| ?[^" WS LETTER NUMBER \
  R"(]+[\r\n]*|[)" WS R"(]*[\r\n]+|)" SPACES
constexpr const char* kDigit = "[" NUMBER "]";
constexpr const char* kGpt2 =
    CONTRACTION "| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" WS LETTER NUMBER "]+|" SPACES;
constexpr const char* kQwen2 = LLAMA3("[" NUMBER "]");
constexpr const char* kLlama3 = LLAMA3("[" NUMBER "]{1,3}");
#undef WS
#undef LETTER
#undef NUMBER
#undef CONTRACTION
#undef SPACES
#undef LLAMA3

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
    if (code_ == nullptr && error == PCRE2_ERROR_HEAP_FAILED) throw std::bad_alloc();
    KVFOLD_CHECK(code_ != nullptr);  // the patterns are our own
    // Without JIT (it may be missing from the build) matching is slower and the same.
    pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
  }
  ~Pattern() { pcre2_code_free(code_); }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // Matches and what lies between them, in order.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
        pcre2_match_data_create_from_pattern(code_, nullptr), &pcre2_match_data_free);
    if (match == nullptr) throw std::bad_alloc();
    size_t at = 0;
    while (at < text.size()) {
      const int found = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                    PCRE2_NO_UTF_CHECK, match.get(), nullptr);
      if (found == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
      if (found < 0) break;  // no match, or a limit of the library: the rest is one piece, never lost
      const size_t* range = pcre2_get_ovector_pointer(match.get());
      if (range[1] <= range[0]) break;
      if (range[0] > at) pieces.push_back(text.substr(at, range[0] - at));
      pieces.push_back(text.substr(range[0], range[1] - range[0]));
      at = range[1];
    }
    if (at < text.size()) pieces.push_back(text.substr(at));
  }

 private:
  pcre2_code* code_;
};

// What has been added to Unicode since version 9 of marks that are put in order, and of characters that
// compose. The models' own tokenizers normalise by tables of that version: to them these are characters that
// stay as and where they are.
struct Range {
  utf8proc_int32_t first, last;
};
constexpr Range kAdded[] = {
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1AFF},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x105C9, 0x105E4}, {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC},
    {0x10EFA, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x11382, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x1611E, 0x1612F}, {0x16D63, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}, {0x1E6E3, 0x1E6F5},
};

bool is_added(utf8proc_int32_t c) {
  return std::ranges::any_of(kAdded, [&](Range range) { return c >= range.first && c <= range.last; });
}

// In normal form C by the tables of utf8proc.
std::string normalize_run(std::string_view text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &out, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (length == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (length < 0) return std::string(text);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(out, &std::free);
  return {reinterpret_cast<const char*>(out), static_cast<size_t>(length)};
}

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
      fmt::format("tokenizer.ggml.pre: found '{}', expected one of {}", printable(name), known));
}

std::string normalize_nfc(std::string_view text) {
  bool ascii = true;
  for (const char c : text) ascii &= static_cast<unsigned char>(c) < 0x80;
  if (ascii) return std::string(text);
  std::string out;
  size_t begin = 0;  // of what is not yet in `out`
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t c = 0;
    const std::string_view rest = text.substr(at);
    const auto size =
        static_cast<size_t>(utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(rest.data()),
                                             static_cast<utf8proc_ssize_t>(rest.size()), &c));
    if (is_added(c)) {
      out += normalize_run(text.substr(begin, at - begin));
      out += rest.substr(0, size);
      begin = at + size;
    }
    at += size;
  }
  return out += normalize_run(text.substr(begin));
}

}  // namespace kvfold
