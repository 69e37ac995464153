#include "engine/tokenizer/utf8.h"

#include <cstdint>

namespace kvfold {

Utf8 utf8_first(std::string_view text, size_t& length) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) {
    length = 1;
    return Utf8::kValid;
  }
  if (lead < 0xC2 || lead > 0xF4) return Utf8::kInvalid;
  length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return Utf8::kIncomplete;
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
    if (i == 1) {
      // Overlong forms, surrogates, and what lies beyond U+10FFFF show in the second byte.
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte(i) < low || byte(i) > high) return Utf8::kInvalid;
  }
  return Utf8::kValid;
}

size_t utf8_valid_prefix(std::string_view text) {
  size_t at = 0;
  size_t length = 0;
  while (at < text.size() && utf8_first(text.substr(at), length) == Utf8::kValid) at += length;
  return at;
}

void utf8_append(char32_t c, std::string& out) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 63));
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  }
}

}  // namespace kvfold
