// How much of a token's attention goes to some rows of its cache.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/session.h"

namespace kvfold {

// Mean over query heads, by layer, of the attention weight that `token`, fed to a fork of each cache, gives
// the rows at slots [begin, end).
struct MassJob {
  const KvCache* cache;
  TokenId token;
  int begin, end;
};

struct AttentionShare {
  std::vector<double> by_layer;   // mean over query heads
  std::optional<double> no_sink;  // mean over layers and heads, of the rows but slot 0, the attention sink;
                                  // none where slot 0 is not among the rows
};

// Of each job. Errors: as Session::feed.
Result<std::vector<AttentionShare>> attention_mass(Session& session, std::span<const MassJob> jobs);

// The attention weight that each row of the cache gets from `tokens`, fed to a fork of it: mean over layers,
// query heads and tokens, divided by its mean over the rows but the first, the attention sink. [rows of the
// cache]. Errors: as Session::feed. REQUIRES: two rows and one token at least.
Result<std::vector<float>> row_attention(Session& session, const KvCache& cache,
                                         std::span<const TokenId> tokens);

}  // namespace kvfold
