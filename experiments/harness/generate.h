// Greedy continuation of several caches as one batch.
#pragma once

#include <span>
#include <vector>

#include "engine/session.h"

namespace kvfold {

struct Continuation {
  std::vector<TokenId> ids;               // without the end token
  bool ended = false;                     // an end token came
  bool stalled = false;                   // it was the first: `ids` then begins with the best other token
  std::vector<double> log_probabilities;  // of each id when it was chosen
  std::vector<uint64_t>
      hashes;  // XXH3-64 of each row of logits, the end token's included: equal bits, equal hash

  // What the model says, and what it says with end tokens banned for the first token where it stalls.
  std::span<const TokenId> said() const { return stalled ? std::span<const TokenId>() : ids; }
};

// A cache, and the token that is fed to it first.
struct Start {
  KvCache cache;
  TokenId token;
};

// Feeds each start's token and continues greedily until an end token or `count` tokens. One that ends at once
// is noted as stalled and goes on with the likeliest token that is no end token. Each one's bits are those
// that it has alone. Errors: as Session::feed.
Result<std::vector<Continuation>> continue_greedily(Session& session, std::span<const Start> starts,
                                                    int count);

}  // namespace kvfold
