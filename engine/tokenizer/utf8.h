// UTF-8, as the Unicode standard defines it (no surrogates, no overlong forms, up to U+10FFFF).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kvfold {

enum class Utf8 { kValid, kIncomplete, kInvalid };

// The character that `text` begins with: its length in bytes in `length` when valid. Incomplete: more bytes
// could make it valid. REQUIRES: text is not empty.
Utf8 utf8_first(std::string_view text, size_t& length);

// Length of the longest valid prefix of `text`.
size_t utf8_valid_prefix(std::string_view text);

void utf8_append(char32_t code_point, std::string& out);

}  // namespace kvfold
