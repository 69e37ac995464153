// What is measured of an output's text and tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

// The markers that stand in `text` as whole words, case ignored by Unicode's folding: letters and digits on
// either side of a marker make it part of another word, and "1,100" or "100.5" is another number than "100".
std::vector<std::string> find_markers(const std::string& text, const std::vector<std::string>& markers);

// exp of the mean negative log-probability; none for no tokens.
std::optional<double> perplexity(std::span<const double> log_probabilities);

// Different n-grams of tokens / n-grams (Li et al. 2016, arXiv:1510.03055). None below two n-grams, where
// nothing can repeat.
std::optional<double> distinct_ratio(std::span<const TokenId> ids, int n);

// Tokens of the longest suffix that also ends earlier, the two possibly overlapping: a loop of period p over
// L tokens has L - p. None for fewer than two tokens.
std::optional<int> longest_repeated_suffix(std::span<const TokenId> ids);

// Tokens of the longest run that stands in both.
int longest_common_run(std::span<const TokenId> a, std::span<const TokenId> b);

// Bytes of the text deflated by zlib at level 9 / bytes of the text; above 1 for short texts. None for no
// text.
std::optional<double> zlib_ratio(const std::string& text);

// (ld - baseline) / (text - baseline): the share of the text's effect. None where the text's own effect is
// below 0.1 nats, and the quotient says nothing.
std::optional<double> transfer_fraction(double ld, double baseline, double text);

// All of the loop and copy measures of one output.
struct TextShape {
  std::optional<double> distinct[3];  // distinct-1, -2, -3
  std::optional<int> longest_repeat;
  std::optional<double> zlib;
  int copy_run = 0;                  // against the source
  std::optional<double> copy_share;  // of the output; none without output
};
TextShape text_shape(std::span<const TokenId> ids, const std::string& text, std::span<const TokenId> source);

}  // namespace kvfold
