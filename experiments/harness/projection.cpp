#include "experiments/harness/projection.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <set>

#include "engine/printable.h"
#include "engine/random.h"
#include "experiments/harness/scoring.h"

namespace kvfold {
namespace {

constexpr size_t kFewestScored = 8;

// What is closed, and the gap that there is.
struct Share {
  double closed = 0, gap = 0;
  void operator+=(const Share& other) {
    closed += other.closed;
    gap += other.gap;
  }
  double value() const { return closed / gap; }
};

}  // namespace

Result<ProjectionText> cut_text(const CorpusText& text, const Tokenizer& source, const Tokenizer& target) {
  const std::vector<TokenId> ids = target.encode(text.text);
  // Texts of few tokens give two thirds of them.
  const size_t most = std::min<size_t>(kContextTokens, ids.size() * 2 / 3);
  size_t bytes = 0;
  for (size_t i = 0; i < most; ++i) bytes += target.token_bytes(ids[i]).size();
  const size_t cut = text.text.rfind(' ', std::min(bytes, text.text.size()));
  if (cut == std::string::npos || cut == 0)
    return Status::error(fmt::format("text '{}': no space to cut it at", printable(text.id)));
  ProjectionText out{text.id, text.kind, text.text.substr(0, cut), {}, {}, {}, {}};
  KVFOLD_ASSIGN_OR_RETURN(out.context, align(source, target, out.context_text));
  KVFOLD_ASSIGN_OR_RETURN(AlignedTokens back, align(target, out.context.target, source, out.context.source));
  out.back = std::move(back.source_row);
  const std::string rest = text.text.substr(cut);
  const EncodeOptions inside{.parse_special = true, .add_bos = false};
  out.continuation = target.encode(rest, inside);
  out.source_continuation = source.encode(rest, inside);
  for (std::vector<TokenId>* tokens : {&out.continuation, &out.source_continuation}) {
    if (tokens->size() > kContinuationTokens) tokens->resize(kContinuationTokens);
    if (tokens->size() <= kFewestScored)
      return Status::error(fmt::format("text '{}': {} tokens behind its context, expected more than {}",
                                       printable(text.id), tokens->size(), kFewestScored));
  }
  return out;
}

std::vector<ProjectionText> cut_texts(std::span<const CorpusText> texts, const Tokenizer& source,
                                      const Tokenizer& target, int* skipped) {
  std::vector<ProjectionText> out;
  for (const CorpusText& text : texts)
    if (auto cut = cut_text(text, source, target); cut.ok()) out.push_back(std::move(cut.value()));
  if (skipped != nullptr) *skipped = static_cast<int>(texts.size() - out.size());
  return out;
}

std::string id_hashes(std::span<const ProjectionText> texts) {
  std::string out;
  for (const ProjectionText& text : texts)
    out += fmt::format("{:016x}", XXH3_64bits(text.id.data(), text.id.size()));
  return out;
}

Status check_unseen(const ProjectorData& projector, std::span<const ProjectionText> texts) {
  std::set<std::string> seen;
  for (const char* key : {kTrainedOn, kChosenOn}) {
    const auto note = projector.notes.find(key);
    if (note == projector.notes.end())
      return Status::error(
          fmt::format("the projector's notes have no '{}': what it has seen is not known", key));
    constexpr size_t kDigits = 16;
    for (size_t i = 0; i < note->second.size(); i += kDigits) seen.insert(note->second.substr(i, kDigits));
  }
  for (const ProjectionText& text : texts)
    if (seen.contains(id_hashes(std::span(&text, 1))))
      return Status::error(
          fmt::format("the projector was fitted to or chosen on the text '{}'", printable(text.id)));
  return {};
}

Result<std::vector<KvCache>> context_caches(Session& session,
                                            std::span<const std::vector<TokenId>* const> contexts) {
  std::vector<KvCache> caches(contexts.size(), session.make_cache());
  std::vector<Feed> feeds;
  for (size_t i = 0; i < contexts.size(); ++i) feeds.push_back({&caches[i], *contexts[i], Wanted::kNone});
  KVFOLD_RETURN_IF_ERROR(session.feed(feeds, {}));
  return caches;
}

Result<std::vector<double>> continuation_nll(Session& session, std::span<const KvCache> caches,
                                             std::span<const std::vector<TokenId>* const> continuations) {
  KVFOLD_CHECK(caches.size() == continuations.size());
  std::vector<ScoreJob> jobs;
  for (size_t i = 0; i < caches.size(); ++i) {
    const std::vector<TokenId>& ids = *continuations[i];
    ScoreJob job;
    job.cache = &caches[i];
    job.first = ids.at(0);
    job.ids = std::span(ids).subspan(1);
    jobs.push_back(job);
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Score> scores, score(session, jobs));
  std::vector<double> out;
  for (const Score& s : scores) out.push_back(-s.sum() / static_cast<double>(s.log_probabilities.size()));
  return out;
}

double gap_closed(std::span<const double> none, std::span<const double> text,
                  std::span<const double> condition) {
  Share sum;
  for (size_t i = 0; i < none.size(); ++i) sum += {none[i] - condition[i], none[i] - text[i]};
  return sum.value();
}

Interval gap_interval(std::span<const double> none, std::span<const double> text,
                      std::span<const double> from, std::span<const double> condition,
                      std::span<const std::string> documents, uint64_t seed) {
  std::map<std::string, Share> by_document;
  for (size_t i = 0; i < none.size(); ++i)
    by_document[documents[i]] += {from[i] - condition[i], none[i] - text[i]};
  std::vector<Share> shares;
  for (const auto& entry : by_document) shares.push_back(entry.second);
  constexpr int kDraws = 2000;
  Random random(seed);
  std::vector<double> drawn;
  for (int draw = 0; draw < kDraws; ++draw) {
    Share sum;
    for (size_t i = 0; i < shares.size(); ++i) sum += shares[random.below(shares.size())];
    drawn.push_back(sum.value());
  }
  std::sort(drawn.begin(), drawn.end());
  return {drawn[kDraws / 40], drawn[kDraws - 1 - kDraws / 40]};
}

}  // namespace kvfold
