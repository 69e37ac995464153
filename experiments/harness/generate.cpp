#include "experiments/harness/generate.h"

#include <xxhash.h>

#include <algorithm>

#include "engine/sampler.h"
#include "experiments/harness/distribution.h"

namespace kvfold {
namespace {

TokenId best_but_end(const Tokenizer& tokenizer, std::span<const float> logits) {
  TokenId best = -1;
  for (TokenId id = 0; id < static_cast<TokenId>(logits.size()); ++id)
    if ((best < 0 || logits[id] > logits[best]) && !tokenizer.is_end(id)) best = id;
  return best;
}

// Takes one row of logits into a continuation and gives the token to go on with.
TokenId take(const Tokenizer& tokenizer, std::span<const float> logits, Continuation& out) {
  out.hashes.push_back(XXH3_64bits(logits.data(), logits.size_bytes()));
  TokenId id = argmax(logits);
  if (tokenizer.is_end(id) && out.hashes.size() == 1) {
    out.stalled = true;
    id = best_but_end(tokenizer, logits);
  }
  out.ended = id < 0 || tokenizer.is_end(id);
  if (out.ended) return id;
  out.ids.push_back(id);
  out.log_probabilities.push_back(logits[id] - log_sum_exp(logits));
  return id;
}

}  // namespace

Result<std::vector<Continuation>> continue_greedily(Session& session, std::span<const Start> starts,
                                                    int count) {
  std::vector<Continuation> out(starts.size());
  std::vector<KvCache> caches;
  std::vector<TokenId> next;
  std::vector<size_t> active;
  caches.reserve(starts.size());
  for (size_t i = 0; i < starts.size(); ++i) {
    caches.push_back(starts[i].cache.fork());
    next.push_back(starts[i].token);
    active.push_back(i);
  }
  while (!active.empty()) {
    std::vector<Feed> feeds;
    for (const size_t i : active) feeds.push_back({&caches[i], std::span(&next[i], 1), Wanted::kLast});
    KVFOLD_RETURN_IF_ERROR(session.feed(feeds, [&](int feed, int, std::span<const float> logits) {
      const size_t i = active[static_cast<size_t>(feed)];
      next[i] = take(session.tokenizer(), logits, out[i]);
    }));
    std::erase_if(active,
                  [&](size_t i) { return out[i].ended || static_cast<int>(out[i].ids.size()) == count; });
  }
  return out;
}

}  // namespace kvfold
