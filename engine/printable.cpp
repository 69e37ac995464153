#include "engine/printable.h"

#include <utf8proc.h>

namespace kvfold {
namespace {

// Letters, marks, numbers, signs and spaces; not controls, what turns the writing direction, line separators.
bool is_shown(utf8proc_int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

}  // namespace

std::string printable(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string out;
  for (const char c : text.substr(0, kMost)) out += c >= ' ' && c < 127 ? c : '?';
  return text.size() > kMost ? out + "..." : out;
}

std::string one_line(std::string_view text, size_t most) {
  if (text.size() > most)
    return one_line(text.substr(0, most / 2)) + "..." + one_line(text.substr(text.size() - most / 2));
  std::string out;
  while (!text.empty()) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t found = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                                    static_cast<utf8proc_ssize_t>(text.size()), &c);
    const size_t length = found > 0 ? static_cast<size_t>(found) : 1;
    if (c == '\n' || c == '\t') {
      out += c == '\n' ? "\\n" : "\\t";
    } else if (found > 0 && is_shown(c)) {
      out += text.substr(0, length);
    } else {
      out += '?';
    }
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace kvfold
