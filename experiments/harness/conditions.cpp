#include "experiments/harness/conditions.h"

#include <xxhash.h>

#include <array>

#include "engine/kv/ops.h"
#include "engine/random.h"

namespace kvfold {
namespace {

// A cache and what is to be fed to it.
struct Growing {
  KvCache* cache;
  std::span<const TokenId> tokens;
};

Status feed_all(Session& session, std::span<const Growing> growing) {
  std::vector<Feed> feeds;
  for (const Growing& g : growing)
    if (!g.tokens.empty()) feeds.push_back({g.cache, g.tokens, Wanted::kNone});
  return session.feed(feeds, {});
}

Result<KvSlice> rows_behind(const KvCache& cache, int begin) {
  Selection selection = Selection::all(cache.shape(), cache.size());
  selection.rows.erase(selection.rows.begin(), selection.rows.begin() + begin);
  return extract(cache, selection);
}

// The caches of one trial's texts, each behind the prefix.
struct Texts {
  KvCache prefix;
  KvCache source, twin, mismatched, filler;
  KvCache fed;  // the source again, computed by itself: what transfer is held against
};

Result<std::vector<ConditionCache>> assemble(const FramedTrial& trial, const Texts& texts, uint64_t seed) {
  const int begin = texts.prefix.size();
  std::vector<ConditionCache> out;
  const auto insert_rows = [&](Condition condition, const KvSlice& rows, const SourceText& source) -> Status {
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache, insert(texts.prefix, rows, begin, {}));
    out.push_back({condition, std::move(cache), begin, begin + rows.size(), &source});
    return {};
  };
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice source, rows_behind(texts.source, begin));
  out.push_back({Condition::kBaseline, texts.prefix.fork(), begin, begin, nullptr});
  constexpr std::array kNoises = {
      std::pair{Condition::kNoise, NoiseKind::kMatched}, std::pair{Condition::kNoiseUnit, NoiseKind::kUnit},
      std::pair{Condition::kNoiseChannel, NoiseKind::kChannel}, std::pair{Condition::kZero, NoiseKind::kZero},
      std::pair{Condition::kShuffled, NoiseKind::kPermuted}};
  for (const auto& [condition, kind] : kNoises) {
    KVFOLD_ASSIGN_OR_RETURN(const KvSlice made_up,
                            noise(source, kind, derive_seed(seed, static_cast<uint64_t>(condition))));
    KVFOLD_RETURN_IF_ERROR(insert_rows(condition, made_up, trial.source));
  }
  KVFOLD_RETURN_IF_ERROR(insert_rows(Condition::kTransfer, source, trial.source));
  out.push_back({Condition::kText, texts.fed.fork(), begin, begin + source.size(), &trial.source});
  const std::array foreign = {std::tuple{Condition::kMismatched, &texts.mismatched, &trial.mismatched},
                              std::tuple{Condition::kTwin, &texts.twin, &trial.twin},
                              std::tuple{Condition::kFiller, &texts.filler, &trial.filler}};
  for (const auto& [condition, cache, text] : foreign) {
    KVFOLD_ASSIGN_OR_RETURN(const KvSlice rows, rows_behind(*cache, begin));
    KVFOLD_RETURN_IF_ERROR(insert_rows(condition, rows, *text));
  }
  return out;
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
    case Condition::kNoiseUnit:
      return "noise-unit";
    case Condition::kNoiseChannel:
      return "noise-channel";
    case Condition::kZero:
      return "zero";
    case Condition::kShuffled:
      return "shuffled";
    case Condition::kTransfer:
      return "transfer";
    case Condition::kText:
      return "text";
    case Condition::kMismatched:
      return "mismatched";
    case Condition::kTwin:
      return "twin";
    case Condition::kFiller:
      break;
  }
  return "filler";
}

uint64_t trial_seed(uint64_t seed, const FramedTrial& trial) {
  const std::string name = trial.trial->id + "/" + framing_name(trial.framing);
  return derive_seed(seed, XXH3_64bits(name.data(), name.size()));
}

Result<KvSlice> source_rows(Session& session, std::span<const TokenId> prefix,
                            std::span<const TokenId> text) {
  KvCache cache = session.make_cache();
  const Growing first{&cache, prefix};
  const Growing second{&cache, text};
  KVFOLD_RETURN_IF_ERROR(feed_all(session, std::span(&first, 1)));
  KVFOLD_RETURN_IF_ERROR(feed_all(session, std::span(&second, 1)));
  return rows_behind(cache, static_cast<int>(prefix.size()));
}

Result<std::vector<std::vector<ConditionCache>>> build_conditions(Session& session,
                                                                  std::span<const FramedTrial> trials,
                                                                  uint64_t seed) {
  std::vector<Texts> texts;
  for (const FramedTrial& trial : trials) {
    KvCache prefix = session.make_cache();
    const Growing g{&prefix, trial.prefix};
    KVFOLD_RETURN_IF_ERROR(feed_all(session, std::span(&g, 1)));
    texts.push_back(
        {prefix.fork(), prefix.fork(), prefix.fork(), prefix.fork(), prefix.fork(), prefix.fork()});
  }
  std::vector<Growing> growing;
  for (size_t i = 0; i < trials.size(); ++i) {
    growing.push_back({&texts[i].source, trials[i].source.ids});
    growing.push_back({&texts[i].twin, trials[i].twin.ids});
    growing.push_back({&texts[i].mismatched, trials[i].mismatched.ids});
    growing.push_back({&texts[i].filler, trials[i].filler.ids});
    growing.push_back({&texts[i].fed, trials[i].source.ids});
  }
  KVFOLD_RETURN_IF_ERROR(feed_all(session, growing));

  std::vector<std::vector<ConditionCache>> out;
  growing.clear();
  for (size_t i = 0; i < trials.size(); ++i) {
    KVFOLD_ASSIGN_OR_RETURN(std::vector<ConditionCache> conditions,
                            assemble(trials[i], texts[i], trial_seed(seed, trials[i])));
    out.push_back(std::move(conditions));
    const std::span<const TokenId> target(trials[i].target);
    for (ConditionCache& c : out.back()) growing.push_back({&c.cache, target.first(target.size() - 1)});
  }
  KVFOLD_RETURN_IF_ERROR(feed_all(session, growing));
  return out;
}

}  // namespace kvfold
