#include "experiments/harness/generate.h"

#include <xxhash.h>

#include "engine/sampler.h"

namespace kvfold {

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
      const TokenId id = argmax(logits);
      out[i].hashes.push_back(XXH3_64bits(logits.data(), logits.size_bytes()));
      out[i].ended = session.tokenizer().is_end(id);
      if (!out[i].ended) {
        out[i].ids.push_back(id);
        out[i].log_probabilities.push_back(log_probability(logits, id));
      }
      next[i] = id;
    }));
    std::erase_if(active,
                  [&](size_t i) { return out[i].ended || static_cast<int>(out[i].ids.size()) == count; });
  }
  return out;
}

Result<std::vector<std::vector<float>>> teacher_force(Session& session, const KvCache& cache, TokenId first,
                                                      std::span<const TokenId> ids) {
  std::vector<TokenId> tokens = {first};
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  KvCache fork = cache.fork();
  std::vector<std::vector<float>> out;
  const Feed feed{&fork, tokens, Wanted::kAll};
  KVFOLD_RETURN_IF_ERROR(session.feed(std::span(&feed, 1), [&](int, int, std::span<const float> logits) {
    out.emplace_back(logits.begin(), logits.end());
  }));
  return out;
}

}  // namespace kvfold
