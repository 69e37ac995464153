#include "experiments/harness/conditions.h"

#include "engine/kv/ops.h"

namespace kvfold {
namespace {

Status feed(Session& session, KvCache& cache, std::span<const TokenId> tokens) {
  const Feed feed{&cache, tokens, Wanted::kNone};
  return session.feed(std::span(&feed, 1), {});
}

// The source's rows as a slice: everything but the prefix that every condition has anyway.
Result<KvSlice> source_rows(Session& session, const FramedTrial& trial) {
  KvCache cache = session.make_cache();
  KVFOLD_RETURN_IF_ERROR(feed(session, cache, trial.prefix));
  KVFOLD_RETURN_IF_ERROR(feed(session, cache, trial.source));
  Selection selection = Selection::all(cache.shape(), cache.size());
  selection.rows.erase(selection.rows.begin(),
                       selection.rows.begin() + static_cast<std::ptrdiff_t>(trial.prefix.size()));
  return extract(cache, selection);
}

}  // namespace

const char* condition_name(Condition condition) {
  switch (condition) {
    case Condition::kBaseline:
      return "baseline";
    case Condition::kSameCache:
      return "same-cache";
    case Condition::kNoise:
      return "noise";
    case Condition::kText:
      return "text";
    case Condition::kTransfer:
      break;
  }
  return "transfer";
}

Result<std::vector<ConditionCache>> build_conditions(Session& session, const FramedTrial& trial,
                                                     uint64_t seed) {
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice source, source_rows(session, trial));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice made_up, noise(source, NoiseKind::kMatched, seed));
  KvCache prefix = session.make_cache();
  KVFOLD_RETURN_IF_ERROR(feed(session, prefix, trial.prefix));
  KvCache text = prefix.fork();
  KVFOLD_RETURN_IF_ERROR(feed(session, text, trial.source));
  KVFOLD_ASSIGN_OR_RETURN(KvCache with_noise, insert(prefix, made_up, prefix.size(), {}));
  KVFOLD_ASSIGN_OR_RETURN(KvCache with_source, insert(prefix, source, prefix.size(), {}));

  const int begin = prefix.size();
  const int end = begin + source.size();
  std::vector<ConditionCache> out;
  out.push_back({Condition::kBaseline, prefix.fork(), begin, begin});
  out.push_back({Condition::kNoise, std::move(with_noise), begin, end});
  out.push_back({Condition::kText, std::move(text), begin, end});
  out.push_back({Condition::kTransfer, std::move(with_source), begin, end});
  const std::span<const TokenId> all_but_last(trial.target.data(), trial.target.size() - 1);
  for (ConditionCache& c : out) KVFOLD_RETURN_IF_ERROR(feed(session, c.cache, all_but_last));
  return out;
}

}  // namespace kvfold
