#include "experiments/harness/measure.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/kv/ops.h"
#include "engine/printable.h"
#include "experiments/harness/attention_mass.h"
#include "experiments/harness/scoring.h"

namespace kvfold {
namespace {

// Bits that must be equal, or no result of this run means anything.
Status check_equal(const FramedTrial& trial, const Continuation& a, const Continuation& b, const char* what) {
  if (a.ids == b.ids && a.hashes == b.hashes && a.ended == b.ended && a.stalled == b.stalled) return {};
  return Status::error(fmt::format("trial '{}' ({}): {} differ; the run is void", printable(trial.trial->id),
                                   framing_name(trial.framing), what));
}

double mean(std::span<const double> x) {
  return x.empty() ? 0 : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

// One condition of one framing while it is measured.
struct Case {
  const FramedTrial* trial;
  ConditionCache built;
  Continuation continuation;
  Outcome outcome;
};

// Whether two caches hold the same bits at the same positions in every lane: then nothing that is computed
// from them can differ.
bool same_bits(const KvCache& a, const KvCache& b) {
  if (a.rows().positions != b.rows().positions || a.next_position() != b.next_position()) return false;
  std::vector<float> x(static_cast<size_t>(a.shape().head_dim));
  std::vector<float> y(x.size());
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < a.shape().lanes(); ++lane)
      for (int slot = 0; slot < a.size(); ++slot) {
        const PageTable& p = a.lanes().table(part, lane);
        const PageTable& q = b.lanes().table(part, lane);
        if (p.holds(slot) != q.holds(slot)) return false;
        if (!p.holds(slot)) continue;
        p.load(part, slot, x.data());
        q.load(part, slot, y.data());
        if (std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) != 0) return false;
      }
  return true;
}

// The jobs of all conditions of one framing, and their way back into the outcomes.
class FramingScores {
 public:
  FramingScores(Session& session, std::span<Case> cases, std::vector<Distribution> reference)
      : session_(session), cases_(cases), reference_(std::move(reference)) {}

  Status run() {
    const FramedTrial& trial = *cases_[0].trial;
    first_tokens_ = trial.marker_tokens;
    first_tokens_.insert(first_tokens_.end(), trial.decoy_tokens.begin(), trial.decoy_tokens.end());
    // Same-cache and text are, as caches, baseline and transfer: what is equal bit for bit is scored once.
    for (size_t i = 0; i < cases_.size(); ++i) {
      size_t same = 0;
      while (same < i && !same_bits(cases_[i].built.cache, cases_[same].built.cache)) ++same;
      same_as_.push_back(same);
      if (same == i) add_jobs(cases_[i]);
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Score> scores, score(session_, jobs_));
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<AttentionShare> masses, attention_mass(session_, mass_jobs_));
    size_t at = 0;
    size_t mass = 0;
    for (size_t i = 0; i < cases_.size(); ++i) {
      if (same_as_[i] == i) {
        take_scores(cases_[i], scores, at);
        if (cases_[i].outcome.source_tokens > 0) cases_[i].outcome.attention = masses[mass++];
      } else {
        copy_scores(cases_[same_as_[i]].outcome, cases_[i].outcome);
      }
    }
    return {};
  }

 private:
  void add(const KvCache& cache, std::span<const TokenId> ids) {
    jobs_.push_back({&cache, cases_[0].trial->target.back(), ids, {}, {}, false});
  }

  void add_jobs(Case& c) {
    const FramedTrial& trial = *c.trial;
    const KvCache& cache = c.built.cache;
    // Along baseline's output: KL, and the words at the first position.
    add(cache, std::span(cases_[0].continuation.ids)
                   .first(std::min(cases_[0].continuation.ids.size(), reference_.size() - 1)));
    jobs_.back().against = reference_;
    jobs_.back().first_tokens = first_tokens_;
    add(cases_[0].built.cache, c.continuation.ids);  // the output under the baseline context
    add(cache, trial.answer);
    add(cache, trial.twin_answer);
    add(cache, trial.contrast.marker);
    add(cache, trial.contrast.twin);
    for (const auto& [name, ids] : trial.probes) add(cache, ids);
    if (c.outcome.source_tokens > 0)
      mass_jobs_.push_back({&cache, trial.target.back(), c.built.inserted_begin, c.built.inserted_end});
  }

  static void copy_scores(const Outcome& from, Outcome& to) {
    to.kl = from.kl;
    to.ld = from.ld;
    to.reference = from.reference;
    to.twin = from.twin;
    to.probes = from.probes;
    to.marker_score = from.marker_score;
    to.decoy_score = from.decoy_score;
    to.attention = from.attention;
    Utterance& said = to.banned ? *to.banned : to.said;
    said.perplexity_baseline = (from.banned ? *from.banned : from.said).perplexity_baseline;
  }

  void take_scores(Case& c, const std::vector<Score>& scores, size_t& at) const {
    const FramedTrial& trial = *c.trial;
    Outcome& o = c.outcome;
    const Score& along = scores[at++];
    o.kl = along.kl;
    const std::span<const double> words(along.first_token_scores);
    o.marker_score = mean(words.first(trial.marker_tokens.size()));
    o.decoy_score = mean(words.subspan(trial.marker_tokens.size()));
    Utterance& said = o.banned ? *o.banned : o.said;
    said.perplexity_baseline = perplexity(scores[at++].log_probabilities);
    o.reference = {scores[at].sum(), static_cast<int>(trial.answer.size())};
    o.twin = {scores[at + 1].sum(), static_cast<int>(trial.twin_answer.size())};
    at += 2;
    o.ld = scores[at].sum(trial.contrast.shared) - scores[at + 1].sum(trial.contrast.shared);
    at += 2;
    for (const auto& [name, ids] : trial.probes)
      o.probes[name] = {scores[at++].sum(), static_cast<int>(ids.size())};
  }

  Session& session_;
  std::span<Case> cases_;
  std::vector<Distribution> reference_;
  std::vector<TokenId> first_tokens_;
  std::vector<ScoreJob> jobs_;
  std::vector<MassJob> mass_jobs_;
  std::vector<size_t> same_as_;  // of each case: the first with the same cache
};

Utterance utter(const Tokenizer& tokenizer, const Case& c, std::span<const TokenId> ids) {
  const FramedTrial& trial = *c.trial;
  const SourceText& source = c.built.source != nullptr ? *c.built.source : trial.source;
  Utterance out;
  out.ids.assign(ids.begin(), ids.end());
  out.text = text_of(tokenizer, ids);
  out.markers = find_markers(out.text, trial.trial->markers);
  out.twin_markers = find_markers(out.text, trial.trial->twin.markers);
  out.truth_markers = find_markers(out.text, trial.trial->truth_markers);
  out.shape = text_shape(ids, out.text, source.ids);
  if (!ids.empty()) out.perplexity_own = perplexity(c.continuation.log_probabilities);
  return out;
}

void describe(const Tokenizer& tokenizer, Case& c) {
  Outcome& o = c.outcome;
  o.condition = c.built.condition;
  if (c.built.source != nullptr) o.source_text = c.built.source->text;
  o.source_tokens = c.built.inserted_end - c.built.inserted_begin;
  o.stall = c.continuation.stalled;
  o.ended = c.continuation.ended || o.stall;
  o.said = utter(tokenizer, c, c.continuation.said());
  if (o.stall) o.banned = utter(tokenizer, c, c.continuation.ids);
  o.injected = cache_signature(c.built.cache, c.built.inserted_begin, c.built.inserted_end);
}

Status measure_framing(Session& session, std::span<Case> cases) {
  const FramedTrial& trial = *cases[0].trial;
  const Continuation& baseline = cases[0].continuation;
  ScoreJob job{&cases[0].built.cache, trial.target.back(), baseline.ids, {}, {}, true};
  KVFOLD_ASSIGN_OR_RETURN(std::vector<Score> along, score(session, std::span(&job, 1)));
  // The last position is baseline's own only where it went on to an end token.
  std::vector<Distribution> reference = std::move(along[0].distributions);
  if (!baseline.ended && reference.size() > 1) reference.pop_back();
  return FramingScores(session, cases, std::move(reference)).run();
}

// Cases of one framing in the order of kConditions, with same-cache behind baseline.
Result<std::vector<Case>> line_up(const FramedTrial& trial, std::vector<ConditionCache> built,
                                  std::span<Continuation> continued, const Replayed& replayed) {
  std::vector<Case> out;
  const auto of = [&](Condition condition) -> const Continuation& {
    return std::find_if(out.begin(), out.end(), [&](const Case& c) { return c.built.condition == condition; })
        ->continuation;
  };
  for (size_t i = 0; i < built.size(); ++i) {
    out.push_back({&trial, std::move(built[i]), std::move(continued[i]), {}});
    if (i > 0) continue;
    // Copies come first: GCC 12 takes apart what was not there yet where one throws inside nested braces.
    const int begin = out[0].built.inserted_begin;
    ConditionCache same{Condition::kSameCache, replayed.cache, begin, begin, nullptr};
    Continuation continuation = replayed.continuation;
    out.push_back({&trial, std::move(same), std::move(continuation), {}});
  }
  KVFOLD_RETURN_IF_ERROR(
      check_equal(trial, of(Condition::kBaseline), of(Condition::kSameCache), "same-cache and baseline"));
  KVFOLD_RETURN_IF_ERROR(
      check_equal(trial, of(Condition::kText), of(Condition::kTransfer), "transfer and text"));
  return out;
}

}  // namespace

std::string text_of(const Tokenizer& tokenizer, std::span<const TokenId> ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const TokenId id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

Result<std::vector<KvCache>> baseline_caches(Session& session, std::span<const FramedTrial> trials) {
  std::vector<KvCache> out;
  std::vector<std::vector<TokenId>> tokens;
  for (const FramedTrial& trial : trials) {
    out.push_back(session.make_cache());
    tokens.push_back(trial.prefix);
    tokens.back().insert(tokens.back().end(), trial.target.begin(), trial.target.end() - 1);
  }
  std::vector<Feed> feeds;
  for (size_t i = 0; i < trials.size(); ++i)
    if (!tokens[i].empty()) feeds.push_back({&out[i], tokens[i], Wanted::kNone});
  KVFOLD_RETURN_IF_ERROR(session.feed(feeds, {}));
  return out;
}

Result<std::vector<TrialOutcome>> measure_trial(Session& session, std::span<const FramedTrial> framings,
                                                std::span<const Replayed> replayed,
                                                const MeasureOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(std::vector<std::vector<ConditionCache>> built,
                          build_conditions(session, framings, options.seed));
  std::vector<Start> starts;
  for (size_t f = 0; f < framings.size(); ++f)
    for (const ConditionCache& c : built[f]) starts.push_back({c.cache.fork(), framings[f].target.back()});
  KVFOLD_ASSIGN_OR_RETURN(std::vector<Continuation> continued,
                          continue_greedily(session, starts, options.count));

  std::vector<TrialOutcome> out;
  std::span<Continuation> rest(continued);
  for (size_t f = 0; f < framings.size(); ++f) {
    const size_t conditions = built[f].size();
    KVFOLD_ASSIGN_OR_RETURN(std::vector<Case> cases,
                            line_up(framings[f], std::move(built[f]), rest.first(conditions), replayed[f]));
    rest = rest.subspan(conditions);
    for (Case& c : cases) describe(session.tokenizer(), c);
    KVFOLD_RETURN_IF_ERROR(measure_framing(session, cases));
    out.push_back(
        {&framings[f],
         trial_seed(options.seed, framings[f]),
         cache_signature(cases[0].built.cache, cases[0].built.inserted_end, cases[0].built.cache.size()),
         longest_common_run(framings[f].answer, framings[f].source.ids),
         {}});
    for (Case& c : cases) out.back().outcomes.push_back(std::move(c.outcome));
  }
  return out;
}

Result<std::vector<double>> permuted_uplifts(Session& session, const FramedTrial& trial,
                                             std::span<const std::vector<TokenId>> others) {
  std::vector<KvCache> caches(others.size() + 1, session.make_cache());
  std::vector<std::vector<TokenId>> tokens;
  std::vector<Feed> feeds;
  tokens.reserve(caches.size());
  for (size_t i = 0; i < caches.size(); ++i) {
    tokens.push_back(trial.prefix);
    if (i > 0) tokens.back().insert(tokens.back().end(), others[i - 1].begin(), others[i - 1].end());
    tokens.back().insert(tokens.back().end(), trial.target.begin(), trial.target.end() - 1);
    if (!tokens.back().empty()) feeds.push_back({&caches[i], tokens.back(), Wanted::kNone});
  }
  KVFOLD_RETURN_IF_ERROR(session.feed(feeds, {}));
  std::vector<ScoreJob> jobs;
  for (const KvCache& cache : caches)
    jobs.push_back({&cache, trial.target.back(), trial.answer, {}, {}, false});
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Score> scores, score(session, jobs));
  std::vector<double> out;
  for (size_t i = 1; i < scores.size(); ++i) out.push_back(scores[i].sum() - scores[0].sum());
  return out;
}

}  // namespace kvfold
