// JSON as files hold it, read strictly.
//
// Refused are, beside what is not JSON: a key twice in an object, of which JSON parsers keep one at their own
// choice (RFC 8259, section 4); a null byte, which nlohmann's parser takes for the end of its input; numbers
// beyond a double; and more levels than any file of ours has, as each costs much memory for its one byte.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "engine/status.h"

namespace kvfold {

inline constexpr int kMostJsonLevels = 64;

// The one value that `text` is. Errors say what is wrong, and at which offset or key.
Result<nlohmann::json> parse_json(std::string_view text, int most_levels = kMostJsonLevels);

}  // namespace kvfold
