// What `kvfold inspect` looks at, and the page that it writes of it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/kv/cache_file.h"
#include "engine/kv/statistics.h"

namespace kvfold::cli {

// The attention that a query's tokens, fed behind a cache, give to rows: the cache's and then the query's
// own.
struct QueryAttention {
  std::vector<TokenId> tokens;  // of the whole query
  std::vector<std::string> texts;
  std::vector<int32_t> positions;
  std::vector<int> queries;  // indices of the tokens whose weights are here, increasing
  int heads = 0;             // query heads
  int rows = 0;
  std::vector<float> weights;  // [layers][heads][queries][rows]
};

struct Inspected {
  std::string path;
  CacheModelInfo model;
  KvCache cache;
  std::vector<std::string> texts;            // of the rows' tokens; empty where no tokenizer is known
  std::vector<LaneStatistics> keys, values;  // [lanes]
  std::optional<QueryAttention> attention;
};

// A page that needs no network: one cache, or two side by side with their difference where their shapes are
// equal. `notes` are shown at its head. Errors: `out` cannot be written; the script that draws is not there
// (the command to fetch it is given).
Status write_page(const std::vector<Inspected>& caches, const std::vector<std::string>& notes,
                  const std::string& out);

}  // namespace kvfold::cli
