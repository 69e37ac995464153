// The conditions and measures of phase 2e.
#include "experiments/harness/crossing.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "engine/kv/ops.h"
#include "engine/random.h"
#include "experiments/harness/generate.h"
#include "experiments/harness/metrics.h"
#include "experiments/harness/options.h"
#include "experiments/harness/prompt_set.h"
#include "experiments/harness/scoring.h"

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

// One half of `a`, the other of `b`; both hold the same slots.
KvCache halves(const KvCache& keys_of, const KvCache& values_of) {
  KvLanes lanes = values_of.lanes();
  for (int lane = 0; lane < lanes.shape().lanes(); ++lane)
    lanes.share(Part::kKey, lane, keys_of.lanes(), lane);
  return KvCache(std::move(lanes), std::make_shared<Rows>(values_of.rows()), values_of.next_position());
}

// The mean row at every place. A projector says what its mean is by what it makes of its mean input.
Result<KvCache> mean_cache(const Crossing& c, std::span<const TokenId> tokens) {
  const Projector& p = *c.projector;
  const auto at = p.data().tensors.find("ridge.mean_in");
  if (at == p.data().tensors.end()) return Status::error("the projector has no tensor 'ridge.mean_in'");
  std::vector<float> in;
  for (size_t i = 0; i < tokens.size(); ++i)
    in.insert(in.end(), at->second.data.begin(), at->second.data.end());
  std::vector<float> out(tokens.size() * static_cast<size_t>(p.target_width()));
  p.apply(in.data(), static_cast<int>(tokens.size()), true, out.data(), *c.threads);
  return cache_of_rows(c.target->pool(), p.data().target.shape, tokens, out.data(), "mean");
}

Result<KvCache> noise_cache(const KvCache& like, uint64_t seed) {
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice all, extract(like, Selection::all(like.shape(), like.size())));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice made, noise(all, NoiseKind::kMatched, seed));
  return to_cache(made);
}

// What the source writes when it is asked to repeat each context, as many tokens as the context has, in the
// receiver's tokens. The source answers from its cache of the context.
Result<std::vector<std::vector<TokenId>>> written(const Crossing& c, std::span<const ProjectionText> texts,
                                                  std::span<const KvCache> sources) {
  const std::vector<TokenId> ask = c.source->tokenizer().encode("\n\nThe same text once more:\n\n",
                                                                {.parse_special = true, .add_bos = false});
  std::vector<KvCache> asked(sources.begin(), sources.end());
  std::vector<Feed> feeds;
  for (KvCache& cache : asked) feeds.push_back({&cache, std::span(ask).first(ask.size() - 1), Wanted::kNone});
  KVFOLD_RETURN_IF_ERROR(c.source->feed(feeds, {}));
  std::vector<Start> starts;
  size_t longest = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    starts.push_back({asked[i], ask.back()});
    longest = std::max(longest, texts[i].context.source.size());
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Continuation> said,
                          continue_greedily(*c.source, starts, static_cast<int>(longest)));
  std::vector<std::vector<TokenId>> out;
  for (size_t i = 0; i < said.size(); ++i) {
    std::span<const TokenId> ids = said[i].said();
    ids = ids.first(std::min(ids.size(), texts[i].context.source.size()));
    std::vector<TokenId> theirs = c.target->tokenizer().encode(c.source->tokenizer().decode(ids, false));
    // Nothing was written: the receiver reads a line break.
    if (theirs.empty()) theirs = c.target->tokenizer().encode("\n");
    out.push_back(std::move(theirs));
  }
  return out;
}

std::vector<const std::vector<TokenId>*> pointers(const std::vector<std::vector<TokenId>>& of) {
  std::vector<const std::vector<TokenId>*> out;
  for (const auto& x : of) out.push_back(&x);
  return out;
}

// All caches of all conditions for some texts.
using Caches = std::map<std::string, std::vector<KvCache>>;

Status build_projected(const Crossing& c, std::span<const ProjectionText> texts,
                       std::span<const KvCache> sources, Caches& out) {
  const std::pair<const char*, const Projector*> projectors[] = {
      {"projected", c.projector}, {"reference", c.reference}, {"shuffled", c.shuffled}};
  for (const auto& [name, projector] : projectors) {
    if (projector == nullptr) continue;
    for (size_t i = 0; i < texts.size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(KvCache cache, project(*projector, sources[i], texts[i].context,
                                                     c.target->pool(), "projected", *c.threads));
      out[name].push_back(std::move(cache));
    }
  }
  const std::vector<KvCache>& projected = out.at("projected");
  for (size_t i = 0; i < texts.size(); ++i) {
    const KvCache& truth = out.at("text")[i];
    out["mismatched"].push_back(projected[(i + 1) % texts.size()]);
    out["mismatched-text"].push_back(out.at("text")[(i + 1) % texts.size()]);
    out["true-k"].push_back(halves(truth, projected[i]));
    out["true-v"].push_back(halves(projected[i], truth));
    KVFOLD_ASSIGN_OR_RETURN(KvCache mean, mean_cache(c, texts[i].context.target));
    out["mean"].push_back(std::move(mean));
    KVFOLD_ASSIGN_OR_RETURN(KvCache random, noise_cache(truth, derive_seed(c.seed, i)));
    out["noise"].push_back(std::move(random));
  }
  return {};
}

Result<Caches> build_conditions(const Crossing& c, std::span<const ProjectionText> texts) {
  std::vector<const std::vector<TokenId>*> source;
  std::vector<const std::vector<TokenId>*> target;
  for (const ProjectionText& text : texts) {
    source.push_back(&text.context.source);
    target.push_back(&text.context.target);
  }
  Caches out;
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> sources, context_caches(*c.source, source));
  KVFOLD_ASSIGN_OR_RETURN(out["text"], context_caches(*c.target, target));
  out["none"].assign(texts.size(), c.target->make_cache());
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<std::vector<TokenId>> said, written(c, texts, sources));
  KVFOLD_ASSIGN_OR_RETURN(out["written"], context_caches(*c.target, pointers(said)));
  KVFOLD_RETURN_IF_ERROR(build_projected(c, texts, sources, out));
  return out;
}

}  // namespace

Result<std::vector<Json>> measure_texts(const Crossing& c, std::span<const ProjectionText> texts) {
  if (texts.size() < 2)
    return Status::error(
        fmt::format("{} texts, expected at least 2: each is another's mismatched one", texts.size()));
  KVFOLD_ASSIGN_OR_RETURN(const Caches caches, build_conditions(c, texts));
  std::vector<const std::vector<TokenId>*> continuations;
  for (const ProjectionText& text : texts) continuations.push_back(&text.continuation);
  std::vector<Json> lines;
  for (const char* condition : kCrossingConditions) {
    const auto at = caches.find(condition);
    if (at == caches.end()) continue;
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<double> nll,
                            continuation_nll(*c.target, at->second, continuations));
    for (size_t i = 0; i < texts.size(); ++i)
      lines.push_back({{"measure", "text"},
                       {"trial", texts[i].id},
                       {"kind", texts[i].kind},
                       {"condition", condition},
                       {"context_tokens", texts[i].context.target.size()},
                       {"scored_tokens", texts[i].continuation.size() - 1},
                       {"nll", nll[i]}});
  }
  return lines;
}

// ---- facts ----

namespace {

// A cache with a question fed but its last token, and what answers it.
struct Asked {
  KvCache cache;
  TokenId last;
};

// Log-probability of `text` behind `before` behind the question.
struct Probe {
  std::vector<TokenId> ids;
  size_t from = 0;  // the first token that counts
};
Probe probe(const Tokenizer& tokenizer, const std::string& before, const std::string& text) {
  const EncodeOptions inside{.parse_special = true, .add_bos = false};
  Probe out;
  out.ids = tokenizer.encode(before + text, inside);
  const std::vector<TokenId> prefix = tokenizer.encode(before, inside);
  while (out.from < prefix.size() && out.from < out.ids.size() && prefix[out.from] == out.ids[out.from])
    ++out.from;
  return out;
}

Result<std::vector<Asked>> ask(Session& session, std::span<const KvCache> caches,
                               const std::string& question) {
  const std::vector<TokenId> ids =
      session.tokenizer().encode(question, {.parse_special = true, .add_bos = false});
  std::vector<Asked> out;
  for (const KvCache& cache : caches) out.push_back({cache, ids.back()});
  std::vector<Feed> feeds;
  for (Asked& asked : out)
    feeds.push_back({&asked.cache, std::span(ids).first(ids.size() - 1), Wanted::kNone});
  KVFOLD_RETURN_IF_ERROR(session.feed(feeds, {}));
  return out;
}

// log p(right) - log p(twin's) of the name, and of the city behind the right name.
Result<std::vector<Json>> ask_facts(Session& session, std::span<const Fact> facts, const char* condition,
                                    std::span<const KvCache> caches, int count) {
  KVFOLD_ASSIGN_OR_RETURN(
      const std::vector<Asked> asked,
      ask(session, caches, "\nQuestion: What is your name and where do you live?\nAnswer:"));
  std::vector<Probe> probes;
  for (const Fact& fact : facts) {
    const std::string named = " My name is " + fact.name + " and I live in";
    probes.push_back(probe(session.tokenizer(), " My name is", " " + fact.name));
    probes.push_back(probe(session.tokenizer(), " My name is", " " + fact.twin_name));
    probes.push_back(probe(session.tokenizer(), named, " " + fact.city));
    probes.push_back(probe(session.tokenizer(), named, " " + fact.twin_city));
  }
  std::vector<ScoreJob> jobs(probes.size());
  for (size_t i = 0; i < probes.size(); ++i) {
    jobs[i].cache = &asked[i / 4].cache;
    jobs[i].first = asked[i / 4].last;
    jobs[i].ids = probes[i].ids;
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Score> scores, score(session, jobs));
  std::vector<Start> starts;
  for (const Asked& a : asked) starts.push_back({a.cache, a.last});
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Continuation> said, continue_greedily(session, starts, count));
  std::vector<Json> lines;
  for (size_t i = 0; i < facts.size(); ++i) {
    const auto sum = [&](size_t which) { return scores[4 * i + which].sum(probes[4 * i + which].from); };
    const std::string text = session.tokenizer().decode(said[i].ids, false);
    lines.push_back({{"measure", "fact"},
                     {"trial", facts[i].id},
                     {"kind", facts[i].kind},
                     {"condition", condition},
                     {"source", facts[i].text},
                     {"name", sum(0)},
                     {"twin_name", sum(1)},
                     {"city", sum(2)},
                     {"twin_city", sum(3)},
                     {"said_name", !find_markers(text, {facts[i].name}).empty()},
                     {"said_city", !find_markers(text, {facts[i].city}).empty()},
                     {"output", text}});
  }
  return lines;
}

}  // namespace

Result<std::vector<Json>> measure_facts(const Crossing& c, std::span<const Fact> facts, int count) {
  std::map<std::string, std::vector<KvCache>> caches;
  for (const Fact& fact : facts) {
    const std::string twin = "Hello, my name is " + fact.twin_name + " and I live in " + fact.twin_city + ".";
    for (const auto& [name, text] : {std::pair{"projected", fact.text}, std::pair{"mismatched", twin}}) {
      KVFOLD_ASSIGN_OR_RETURN(const AlignedTokens tokens,
                              align(c.source->tokenizer(), c.target->tokenizer(), text));
      const std::vector<TokenId>* own = &tokens.source;
      KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> source,
                              context_caches(*c.source, std::span(&own, 1)));
      KVFOLD_ASSIGN_OR_RETURN(
          KvCache made, project(*c.projector, source[0], tokens, c.target->pool(), "projected", *c.threads));
      caches[name].push_back(std::move(made));
      if (text != fact.text) continue;
      own = &tokens.target;
      KVFOLD_ASSIGN_OR_RETURN(std::vector<KvCache> truth, context_caches(*c.target, std::span(&own, 1)));
      caches["text"].push_back(std::move(truth[0]));
      caches["none"].push_back(c.target->make_cache());
    }
  }
  std::vector<Json> lines;
  for (const char* condition : {"none", "text", "projected", "mismatched"}) {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Json> made,
                            ask_facts(*c.target, facts, condition, caches.at(condition), count));
    lines.insert(lines.end(), made.begin(), made.end());
  }
  return lines;
}

// ---- the plan's cases ----

namespace {

Result<KvCache> crossed(const Crossing& c, const SourceText& source) {
  const std::vector<TokenId> ids = c.source->tokenizer().encode(source.text);
  KVFOLD_ASSIGN_OR_RETURN(const AlignedTokens tokens,
                          align(c.source->tokenizer(), ids, c.target->tokenizer(), source.ids));
  const std::vector<TokenId>* own = &tokens.source;
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> made, context_caches(*c.source, std::span(&own, 1)));
  return project(*c.projector, made[0], tokens, c.target->pool(), "projected", *c.threads);
}

Result<std::vector<Json>> measure_case(const Crossing& c, const FramedTrial& trial, int count) {
  Session& session = *c.target;
  std::vector<KvCache> caches(1, session.make_cache());
  const std::vector<TokenId>* text = &trial.source.ids;
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<KvCache> truth, context_caches(session, std::span(&text, 1)));
  caches.push_back(truth[0]);
  for (const SourceText* source : {&trial.source, &trial.mismatched}) {
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache, crossed(c, *source));
    caches.push_back(std::move(cache));
  }
  std::vector<Feed> feeds;
  for (KvCache& cache : caches)
    feeds.push_back({&cache, std::span(trial.target).first(trial.target.size() - 1), Wanted::kNone});
  KVFOLD_RETURN_IF_ERROR(session.feed(feeds, {}));
  std::vector<Start> starts;
  std::vector<ScoreJob> jobs;
  const auto job = [&](const KvCache& cache, std::span<const TokenId> ids) {
    ScoreJob out;
    out.cache = &cache;
    out.first = trial.target.back();
    out.ids = ids;
    jobs.push_back(out);
  };
  for (const KvCache& cache : caches) {
    starts.push_back({cache, trial.target.back()});
    job(cache, trial.contrast.marker);
    job(cache, trial.contrast.twin);
    job(cache, trial.answer);
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Continuation> said, continue_greedily(session, starts, count));
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Score> scores, score(session, jobs));
  std::vector<Json> lines;
  const char* const names[] = {"baseline", "text", "projected", "mismatched"};
  for (size_t i = 0; i < caches.size(); ++i) {
    const std::string output = session.tokenizer().decode(said[i].said(), false);
    const size_t shared = trial.contrast.shared;
    lines.push_back({{"measure", "case"},
                     {"phase", trial.trial->phase},
                     {"trial", trial.trial->id},
                     {"framing", framing_name(trial.framing)},
                     {"condition", names[i]},
                     {"source", trial.source.text},
                     {"target", trial.target_text},
                     {"output", output},
                     {"stall", said[i].stalled},
                     {"markers", find_markers(output, trial.trial->markers)},
                     {"markers_wanted", trial.trial->markers},
                     {"ld", scores[3 * i].sum(shared) - scores[3 * i + 1].sum(shared)},
                     {"reference_logprob", scores[3 * i + 2].sum()},
                     {"reference_uplift", scores[3 * i + 2].sum() - scores[2].sum()}});
  }
  return lines;
}

}  // namespace

Result<std::vector<Json>> measure_cases(const Crossing& c, const std::vector<std::string>& framings,
                                        int count) {
  std::vector<Json> lines;
  for (const char* phase : kCasePhases) {
    KVFOLD_ASSIGN_OR_RETURN(const PromptSet set, load_prompt_set(prompt_set_path(phase)));
    for (const Trial& trial : set.trials) {
      if (trial.set != "plan") continue;
      for (const std::string& name : framings) {
        KVFOLD_ASSIGN_OR_RETURN(const Framing framing, parse_framing(name));
        KVFOLD_ASSIGN_OR_RETURN(const FramedTrial framed,
                                frame(trial, set.by_id(trial.mismatched), framing, c.target->tokenizer()));
        KVFOLD_ASSIGN_OR_RETURN(const std::vector<Json> made, measure_case(c, framed, count));
        lines.insert(lines.end(), made.begin(), made.end());
      }
    }
  }
  return lines;
}

}  // namespace kvfold
