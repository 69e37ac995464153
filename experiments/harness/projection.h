// What projectors between models are fitted to and judged by: texts cut into a context, whose rows cross, and
// a continuation, whose NLL says what arrived.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/kv/projector.h"
#include "engine/session.h"
#include "experiments/harness/corpus.h"

namespace kvfold {

inline constexpr int kContextTokens = 64;
inline constexpr int kContinuationTokens = 32;  // the first is fed, the others are scored

struct ProjectionText {
  std::string id;
  std::string kind;
  std::string context_text;
  AlignedTokens context;              // in the source's and in the target's tokens
  std::vector<int> back;              // for each source token its row in the target: the other way
  std::vector<TokenId> continuation;  // in the target's tokens
  std::vector<TokenId> source_continuation;
};
// Cuts a text at a space, behind about kContextTokens of the target. Errors: as align(); the text is too
// short for both parts.
Result<ProjectionText> cut_text(const CorpusText& text, const Tokenizer& source, const Tokenizer& target);
// Those of the texts that can be cut; how many cannot goes to `skipped`.
std::vector<ProjectionText> cut_texts(std::span<const CorpusText> texts, const Tokenizer& source,
                                      const Tokenizer& target, int* skipped);

// What a projector's notes say of the texts that it was fitted to and chosen on: a hash of each id, 16 hex
// digits, one after another.
inline constexpr const char* kTrainedOn = "trained_on";
inline constexpr const char* kChosenOn = "chosen_on";
std::string id_hashes(std::span<const ProjectionText> texts);
// Errors: the notes say nothing of it, or name one of these texts, which are to judge it.
Status check_unseen(const ProjectorData& projector, std::span<const ProjectionText> texts);

// The caches of the contexts in one model, as one batch. Errors: as Session::feed.
Result<std::vector<KvCache>> context_caches(Session& session,
                                            std::span<const std::vector<TokenId>* const> contexts);

// Mean NLL in nats of each continuation but its first token, behind its cache. Errors: as Session::feed.
// REQUIRES: one cache a continuation, of at least two tokens.
Result<std::vector<double>> continuation_nll(Session& session, std::span<const KvCache> caches,
                                             std::span<const std::vector<TokenId>* const> continuations);

// (none - condition) / (none - text), of sums over texts.
double gap_closed(std::span<const double> none, std::span<const double> text,
                  std::span<const double> condition);
// Of (from - condition) / (none - text) with documents drawn anew, each with all of its texts: the bounds of
// the middle 95% of 2,000 draws. documents: of each text the one that it is of.
struct Interval {
  double low = 0, high = 0;
};
Interval gap_interval(std::span<const double> none, std::span<const double> text,
                      std::span<const double> from, std::span<const double> condition,
                      std::span<const std::string> documents, uint64_t seed);

}  // namespace kvfold
