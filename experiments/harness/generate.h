// Greedy continuation of several caches as one batch.
#pragma once

#include <span>
#include <vector>

#include "engine/session.h"

namespace kvfold {

struct Continuation {
  std::vector<TokenId> ids;               // without the end token
  bool ended = false;                     // an end token came
  std::vector<double> log_probabilities;  // of each id when it was chosen
  std::vector<uint64_t>
      hashes;  // XXH3-64 of each row of logits, the end token's included: equal bits, equal hash
};

// A cache, and the token that is fed to it first.
struct Start {
  KvCache cache;
  TokenId token;
};

// Feeds each start's token and continues greedily until an end token or `count` tokens. Each one's bits are
// those that it has alone. Errors: as Session::feed.
Result<std::vector<Continuation>> continue_greedily(Session& session, std::span<const Start> starts,
                                                    int count);

// The logits with which `cache`, fed `first` and then `ids` in turn, meets each position: [ids.size() +
// 1][vocab_size].
Result<std::vector<std::vector<float>>> teacher_force(Session& session, const KvCache& cache, TokenId first,
                                                      std::span<const TokenId> ids);

}  // namespace kvfold
