// Foreign text made fit to be shown: what stands in files and on command lines is anybody's.
#pragma once

#include <string>
#include <string_view>

namespace kvfold {

// For messages, which say what a file holds: everything but printable ASCII as '?', and cut where it is long.
std::string printable(std::string_view text);

// For a terminal, where paths and tokens stand as they are: text on one line, with line breaks and tabs as
// \n and \t, and what is no UTF-8, moves the cursor or changes how the rest looks as '?'. Of more than `most`
// bytes the middle is left out.
std::string one_line(std::string_view text, size_t most = std::string_view::npos);

}  // namespace kvfold
