// Who looks at whom: post-softmax attention weights, computed in f64 beside the forward pass and by no kernel
// of its.
#pragma once

#include <functional>
#include <span>
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
  // The weights of one query, [rows].
  std::span<const float> of(int layer_index, int head_index, int query) const {
    return std::span(weights).subspan(offset(layer_index, head_index, query), static_cast<size_t>(rows));
  }
  size_t offset(int layer_index, int head_index, int query) const {
    const size_t lane = static_cast<size_t>(layer_index) * heads.size() + static_cast<size_t>(head_index);
    return (lane * static_cast<size_t>(queries) + static_cast<size_t>(query)) * static_cast<size_t>(rows);
  }
};

// Receives the weights of one query in one layer and head (by their index among those asked), [rows of the
// cache with all tokens fed]. The span lives for the call alone.
using AttentionSink =
    std::function<void(int layer_index, int head_index, int query, std::span<const float> weights)>;

// Feeds `tokens` to the cache and hands on the weights with which they attend, in the named layers and query
// heads, to the rows of the cache as it then is: chunk by chunk of the tokens, and in each by layer, head and
// query. Errors: as Session::feed; layers or heads that do not exist.
Status feed_with_attention(Session& session, KvCache& cache, std::span<const TokenId> tokens,
                           std::span<const int> layers, std::span<const int> heads,
                           const AttentionSink& sink);
// The same, with all weights in memory.
Result<AttentionWeights> feed_with_attention(Session& session, KvCache& cache,
                                             std::span<const TokenId> tokens, std::span<const int> layers,
                                             std::span<const int> heads);

// The share of their attention that queries give to some rows: the weights of those rows added up, and the
// mean over the queries.
struct AttentionMass {
  int heads = 0;
  std::vector<double> by_head;   // [layers asked][heads asked]
  std::vector<double> by_layer;  // [layers asked]: mean over heads
  double mean = 0;               // over layers
};
// REQUIRES: at least one layer, head and query; every slot is one of the rows, and none is named twice.
AttentionMass attention_mass(const AttentionWeights& weights, std::span<const int> slots);

}  // namespace kvfold
