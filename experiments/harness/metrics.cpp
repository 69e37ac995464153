#include "experiments/harness/metrics.h"

#include <utf8proc.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <set>

#include "engine/status.h"

namespace kvfold {
namespace {

// Code points of `text`, case-folded and composed; none where it is not UTF-8, which a decoder's text always
// is.
std::vector<utf8proc_int32_t> fold(const std::string& text) {
  utf8proc_uint8_t* mapped = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_CASEFOLD | UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  const utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                               static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  if (length == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  std::vector<utf8proc_int32_t> out;
  for (utf8proc_ssize_t at = 0; at < length;) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(mapped + at, length - at, &c);
    if (n <= 0) break;
    out.push_back(c);
    at += n;
  }
  return out;
}

bool in_word(utf8proc_int32_t c) {
  constexpr utf8proc_int32_t kFeminine = 0xAA;   // ordinal signs: letters to Unicode, and often written for
  constexpr utf8proc_int32_t kMasculine = 0xBA;  // a degree
  if (c == kFeminine || c == kMasculine) return false;
  const utf8proc_category_t category = utf8proc_category(c);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
         (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_NO);
}

bool is_digit(utf8proc_int32_t c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_ND; }

// Whether the code points before and at `i` belong to one word, or to one number: "1,100", "99.5".
bool joined(const std::vector<utf8proc_int32_t>& text, size_t i) {
  if (i == 0 || i == text.size()) return false;
  const auto one_number = [&](size_t sign) {
    return sign > 0 && sign + 1 < text.size() && (text[sign] == '.' || text[sign] == ',') &&
           is_digit(text[sign - 1]) && is_digit(text[sign + 1]);
  };
  return (in_word(text[i - 1]) && in_word(text[i])) || one_number(i) || one_number(i - 1);
}

bool holds_word(const std::vector<utf8proc_int32_t>& text, const std::vector<utf8proc_int32_t>& word) {
  if (word.empty()) return false;
  for (size_t at = 0; at + word.size() <= text.size(); ++at) {
    if (!std::equal(word.begin(), word.end(), text.begin() + static_cast<std::ptrdiff_t>(at))) continue;
    if (!joined(text, at) && !joined(text, at + word.size())) return true;
  }
  return false;
}

// A marker's signs at either end ("100°", "Frost.") may be missing in the text, unless it is nothing else.
std::vector<utf8proc_int32_t> core(std::vector<utf8proc_int32_t> word) {
  const auto first = std::find_if(word.begin(), word.end(), in_word);
  if (first == word.end()) return word;
  const auto last = std::find_if(word.rbegin(), word.rend(), in_word).base();
  return {first, last};
}

}  // namespace

std::vector<std::string> find_markers(const std::string& text, const std::vector<std::string>& markers) {
  const std::vector<utf8proc_int32_t> folded = fold(text);
  std::vector<std::string> found;
  for (const std::string& marker : markers)
    if (holds_word(folded, core(fold(marker)))) found.push_back(marker);
  return found;
}

std::optional<double> perplexity(std::span<const double> log_probabilities) {
  if (log_probabilities.empty()) return std::nullopt;
  const double sum = std::accumulate(log_probabilities.begin(), log_probabilities.end(), 0.0);
  return std::exp(-sum / static_cast<double>(log_probabilities.size()));
}

std::optional<double> distinct_ratio(std::span<const TokenId> ids, int n) {
  const auto size = static_cast<int64_t>(ids.size());
  const int64_t grams = size - n + 1;
  if (grams < 2) return std::nullopt;
  std::set<std::vector<TokenId>> different;
  for (int64_t i = 0; i < grams; ++i) different.emplace(ids.begin() + i, ids.begin() + i + n);
  return static_cast<double>(different.size()) / static_cast<double>(grams);
}

std::optional<int> longest_repeated_suffix(std::span<const TokenId> ids) {
  if (ids.size() < 2) return std::nullopt;
  size_t longest = 0;
  for (size_t end = 1; end < ids.size(); ++end) {
    size_t n = 0;
    while (n < end && ids[end - 1 - n] == ids[ids.size() - 1 - n]) ++n;
    longest = std::max(longest, n);
  }
  return static_cast<int>(longest);
}

int longest_common_run(std::span<const TokenId> a, std::span<const TokenId> b) {
  int longest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < b.size(); ++j) {
      size_t n = 0;
      while (i + n < a.size() && j + n < b.size() && a[i + n] == b[j + n]) ++n;
      longest = std::max(longest, static_cast<int>(n));
    }
  return longest;
}

std::optional<double> zlib_ratio(const std::string& text) {
  if (text.empty()) return std::nullopt;
  uLongf size = compressBound(static_cast<uLong>(text.size()));
  std::vector<Bytef> out(size);
  constexpr int kLevel = 9;
  const int result = compress2(out.data(), &size, reinterpret_cast<const Bytef*>(text.data()),
                               static_cast<uLong>(text.size()), kLevel);
  if (result == Z_MEM_ERROR) throw std::bad_alloc();
  KVFOLD_CHECK(result == Z_OK);
  return static_cast<double>(size) / static_cast<double>(text.size());
}

std::optional<double> transfer_fraction(double ld, double baseline, double text) {
  constexpr double kLeastEffect = 0.1;  // nats
  if (std::abs(text - baseline) < kLeastEffect) return std::nullopt;
  return (ld - baseline) / (text - baseline);
}

TextShape text_shape(std::span<const TokenId> ids, const std::string& text, std::span<const TokenId> source) {
  TextShape out;
  for (int n = 1; n <= 3; ++n) out.distinct[n - 1] = distinct_ratio(ids, n);
  out.longest_repeat = longest_repeated_suffix(ids);
  out.zlib = zlib_ratio(text);
  out.copy_run = longest_common_run(ids, source);
  if (!ids.empty()) out.copy_share = out.copy_run / static_cast<double>(ids.size());
  return out;
}

}  // namespace kvfold
