// Who looks at whom: post-softmax attention weights, computed in f64 beside the forward pass and by no kernel
// of its.
#pragma once

#include <vector>

#include "engine/session.h"

namespace kvfold {

// [layers asked][heads asked][queries][rows], row-major. Rows that a lane lacks, and rows behind the query,
// have weight 0; each query's weights add up to 1.
struct AttentionWeights {
  std::vector<int> layers, heads;  // query heads
  int queries = 0;
  int rows = 0;
  std::vector<float> weights;
  const float* of(int layer_index, int head_index, int query) const {
    const size_t at = (static_cast<size_t>(layer_index) * heads.size() + static_cast<size_t>(head_index)) *
                          static_cast<size_t>(queries) +
                      static_cast<size_t>(query);
    return &weights[at * static_cast<size_t>(rows)];
  }
};

// Feeds `tokens` to the cache and returns the weights with which they attended, in the named layers and query
// heads, to the rows of the cache as it then is. Errors: as Session::feed; layers or heads that do not exist.
Result<AttentionWeights> feed_with_attention(Session& session, KvCache& cache,
                                             std::span<const TokenId> tokens, std::span<const int> layers,
                                             std::span<const int> heads);

}  // namespace kvfold
