// Messages of tokenizer.model, written by hand.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace kvfold::testing {

inline std::string varint(uint64_t value) {
  std::string out;
  for (; value > 127; value >>= 7) out += static_cast<char>(value | 128);
  return out + static_cast<char>(value);
}
inline std::string number(uint32_t field, uint64_t value) { return varint(field << 3) + varint(value); }
inline std::string bytes(uint32_t field, const std::string& text) {
  return varint(field << 3 | 2) + varint(text.size()) + text;
}
// A piece of a SentencePiece model.
inline std::string piece(const std::string& text, float score, uint64_t type) {
  std::string raw(4, '\0');
  std::memcpy(raw.data(), &score, 4);
  return bytes(1, bytes(1, text) + varint(2 << 3 | 5) + raw + number(3, type));
}

}  // namespace kvfold::testing
