// Foreign text made fit for a one-line message.
#pragma once

#include <string>
#include <string_view>

namespace kvfold {

// `text` with everything but printable ASCII as '?', and cut where it is long.
inline std::string printable(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string out;
  for (const char c : text.substr(0, kMost)) out += c >= ' ' && c < 127 ? c : '?';
  return text.size() > kMost ? out + "..." : out;
}

}  // namespace kvfold
