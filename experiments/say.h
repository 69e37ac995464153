// What programs say on stderr: one line at a time, whatever stands in it, and of a length that can be read.
#pragma once

#include <climits>
#include <cstdio>
#include <string>
#include <string_view>

#include "engine/printable.h"

namespace kvfold {

// A path, and what a message says beside it.
inline constexpr size_t kMostLine = PATH_MAX + 600;
// What the parser says of an option, which may be no path.
inline constexpr size_t kMostParserLine = 500;

// Where nobody can be told, no more is to be done.
inline void say(std::string_view line, size_t most = kMostLine) {
  std::fputs((one_line(line, most) + "\n").c_str(), stderr);
}

// Why a program ends. Its exit status.
inline int fail(std::string_view message, size_t most = kMostLine) {
  say("kvfold: " + std::string(message), most);
  return 2;
}

}  // namespace kvfold
