// Hashes of what stands in files, for tables. Their seed is drawn anew in every process: who knows a hash can
// write many keys of one value, and a table is then searched from end to end for each (Crosby and Wallach
// 2003). No result depends on the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvfold {

uint64_t hash_seed();

struct TextHash {
  size_t operator()(std::string_view text) const;
};

}  // namespace kvfold
