#include "experiments/harness/sweep_measure.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "engine/kv/ops.h"
#include "engine/printable.h"
#include "experiments/harness/metrics.h"
#include "experiments/harness/scoring.h"

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

// Caches fed at once: bounds the pages that are held.
constexpr size_t kBatch = 64;

struct ToFeed {
  KvCache* cache;
  std::span<const TokenId> tokens;
};

Status feed_all(Session& session, std::span<const ToFeed> all) {
  std::vector<Feed> feeds;
  for (const ToFeed& f : all)
    if (!f.tokens.empty()) feeds.push_back({f.cache, f.tokens, Wanted::kNone});
  return session.feed(feeds, {});
}

// The texts of one source. Where no cut of the neutral text has just as many tokens, its last one is
// repeated.
Result<SweepSource> make_source(Session& session, const FramedTrial& of, std::span<const TokenId> target) {
  KvCache prefix = session.make_cache();
  const ToFeed first{&prefix, of.prefix};
  KVFOLD_RETURN_IF_ERROR(feed_all(session, std::span(&first, 1)));
  std::vector<TokenId> filler = of.filler.ids;
  filler.resize(of.source.ids.size(), filler.back());
  SweepSource out{prefix.fork(), prefix.fork(), prefix.fork(), prefix.fork(),
                  prefix.fork(), target,        prefix.size()};
  const ToFeed rest[] = {{&out.source, of.source.ids},
                         {&out.filler, filler},
                         {&out.alone, target.first(target.size() - 1)},
                         {&out.whole, target}};
  KVFOLD_RETURN_IF_ERROR(feed_all(session, rest));
  return out;
}

struct PointScores {
  double ld = 0;
  double reference = 0, twin = 0;  // log-probabilities, nats
  std::map<std::string, double> probes;
  std::vector<double> kl;
};

class SweepTrial {
 public:
  SweepTrial(Session& session, const Sweep& sweep, const FramedTrial& own)
      : session_(session), sweep_(sweep), own_(own) {}

  Status start(const SweepSource& source) {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<PointScores> baseline,
                            scores_of(std::span(&source.alone, 1), true));
    KvCache text = source.source.fork();
    const std::span<const TokenId> target(own_.target);
    const ToFeed feed{&text, target.first(target.size() - 1)};
    KVFOLD_RETURN_IF_ERROR(feed_all(session_, std::span(&feed, 1)));
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<PointScores> fed, scores_of(std::span(&text, 1), false));
    baseline_ = baseline[0];
    text_ = fed[0];
    lines_.push_back(line("baseline", nullptr, baseline_, 0));
    lines_.push_back(line("text", nullptr, text_, source.rows()));
    return {};
  }

  Status run(const SweepSource& source, const char* condition, bool is_own) {
    KVFOLD_ASSIGN_OR_RETURN(std::vector<SweepPoint> points, sweep_.points(source));
    for (size_t begin = 0; begin < points.size(); begin += kBatch) {
      const std::span<SweepPoint> some(points.data() + begin, std::min(kBatch, points.size() - begin));
      std::vector<ToFeed> feeds;
      for (SweepPoint& point : some) feeds.push_back({&point.cache, point.rest});
      KVFOLD_RETURN_IF_ERROR(feed_all(session_, feeds));
      std::vector<KvCache> caches;
      for (SweepPoint& point : some) caches.push_back(std::move(point.cache));
      KVFOLD_ASSIGN_OR_RETURN(const std::vector<PointScores> scores, scores_of(caches, false));
      for (size_t i = 0; i < some.size(); ++i) {
        if (is_own && some[i].point == "start:0/follow/fed") KVFOLD_RETURN_IF_ERROR(check_text(scores[i]));
        lines_.push_back(line(condition, &some[i], scores[i], source.rows()));
      }
    }
    return {};
  }

  std::vector<Json> take() { return std::move(lines_); }

 private:
  // `first`: the cache is baseline's, and its distributions along the reference answer are kept.
  Result<std::vector<PointScores>> scores_of(std::span<const KvCache> caches, bool first) {
    std::vector<ScoreJob> jobs;
    const TokenId last = own_.target.back();
    const std::span<const TokenId> answer(own_.answer);
    for (const KvCache& cache : caches) {
      jobs.push_back({&cache, last, answer, reference_, {}, first});
      jobs.push_back({&cache, last, own_.twin_answer, {}, {}, false});
      jobs.push_back({&cache, last, own_.contrast.marker, {}, {}, false});
      jobs.push_back({&cache, last, own_.contrast.twin, {}, {}, false});
      for (const auto& [name, ids] : own_.probes) jobs.push_back({&cache, last, ids, {}, {}, false});
    }
    KVFOLD_ASSIGN_OR_RETURN(std::vector<Score> scores, score(session_, jobs));
    if (first) {
      reference_ = std::move(scores[0].distributions);
      reference_.resize(std::min(reference_.size(), answer.size()), reference_.front());
      scores[0].kl.assign(reference_.size(), 0.0);
    }
    std::vector<PointScores> out;
    for (size_t at = 0; at < scores.size();) {
      PointScores& p = out.emplace_back();
      p.reference = scores[at].sum();
      p.kl = scores[at].kl;
      p.twin = scores[at + 1].sum();
      p.ld = scores[at + 2].sum(own_.contrast.shared) - scores[at + 3].sum(own_.contrast.shared);
      at += 4;
      for (const auto& [name, ids] : own_.probes) p.probes[name] = scores[at++].sum();
    }
    return out;
  }

  Status check_text(const PointScores& p) const {
    if (p.reference == text_.reference && p.twin == text_.twin && p.ld == text_.ld && p.kl == text_.kl)
      return {};
    return Status::error(
        fmt::format("trial '{}' ({}): transfer at the start and text differ; the run is void",
                    printable(own_.trial->id), framing_name(own_.framing)));
  }

  Json line(const char* condition, const SweepPoint* point, const PointScores& p, int source_tokens) const {
    const Trial& t = *own_.trial;
    const auto text_or_null = [](const std::string& text) {
      return text.empty() ? Json(nullptr) : Json(text);
    };
    const auto reference_tokens = static_cast<double>(own_.answer.size());
    const auto twin_tokens = static_cast<double>(own_.twin_answer.size());
    Json out = {{"phase", sweep_.name},
                {"sweep", sweep_.name},
                {"family", t.family},
                {"set", t.set},
                {"trial", t.id},
                {"item", t.item},
                {"framing", framing_name(own_.framing)},
                {"mode", text_or_null(t.mode)},
                {"entity", text_or_null(t.entity)},
                {"condition", condition},
                {"point", point != nullptr ? point->point : condition},
                {"series", point != nullptr ? Json(point->series) : Json(nullptr)},
                {"x", point != nullptr && point->x ? Json(*point->x) : Json(nullptr)},
                {"x_label", point != nullptr ? text_or_null(point->x_label) : Json(nullptr)},
                {"selection", point != nullptr ? text_or_null(point->selection) : Json(nullptr)},
                {"sink", point != nullptr ? text_or_null(point->sink) : Json(nullptr)}};
    for (const std::string& key : sweep_.keys)
      out[key] = point != nullptr && point->keys.contains(key) ? point->keys.at(key) : Json(nullptr);
    out["source_tokens"] = source_tokens;
    out["target_tokens"] = own_.target.size();
    out["ld"] = p.ld;
    const std::optional<double> tau = transfer_fraction(p.ld, baseline_.ld, text_.ld);
    out["tau"] = tau ? Json(*tau) : Json(nullptr);
    out["reference_tokens"] = own_.answer.size();
    out["reference_logprob"] = p.reference;
    out["reference_uplift"] = p.reference - baseline_.reference;
    out["reference_uplift_per_token"] = (p.reference - baseline_.reference) / reference_tokens;
    out["twin_reference_tokens"] = own_.twin_answer.size();
    out["twin_logprob"] = p.twin;
    out["twin_uplift"] = p.twin - baseline_.twin;
    out["twin_uplift_per_token"] = (p.twin - baseline_.twin) / twin_tokens;
    out["probes"] = Json::object();
    for (const auto& [name, value] : p.probes)
      out["probes"][name] = {{"logprob", value},
                             {"uplift", value - baseline_.probes.at(name)},
                             {"tokens", own_.probes.at(name).size()}};
    out["truth_uplift"] = p.probes.contains("truth") ? out["probes"]["truth"]["uplift"] : Json(nullptr);
    out["kl_baseline"] = std::accumulate(p.kl.begin(), p.kl.end(), 0.0) / static_cast<double>(p.kl.size());
    out["kl_positions"] = p.kl.size();
    return out;
  }

  Session& session_;
  const Sweep& sweep_;
  const FramedTrial& own_;
  std::vector<Distribution> reference_;
  PointScores baseline_, text_;
  std::vector<Json> lines_;
};

}  // namespace

Result<std::vector<Json>> measure_sweep(Session& session, const Sweep& sweep, const FramedTrial& own,
                                        const FramedTrial& foreign) {
  KVFOLD_ASSIGN_OR_RETURN(const SweepSource source, make_source(session, own, own.target));
  KVFOLD_ASSIGN_OR_RETURN(const SweepSource other, make_source(session, foreign, own.target));
  SweepTrial trial(session, sweep, own);
  KVFOLD_RETURN_IF_ERROR(trial.start(source));
  KVFOLD_RETURN_IF_ERROR(trial.run(source, "transfer", true));
  KVFOLD_RETURN_IF_ERROR(trial.run(other, "mismatched", false));
  return trial.take();
}

std::string format_sweep(std::span<const nlohmann::json> lines) {
  struct Mean {
    double sum = 0;
    int count = 0;
    double value() const { return count == 0 ? 0 : sum / count; }
  };
  struct Row {
    Mean own, foreign, contrast, mode;
  };
  std::map<std::string, std::map<double, Row>> series;
  const auto add = [](Mean& mean, double value) {
    mean.sum += value;
    ++mean.count;
  };
  for (const nlohmann::json& line : lines) {
    if (line.at("series").is_null()) continue;
    constexpr double kBins = 10;  // positions of targets of other lengths fall into tenths
    double x = line.at("x").is_null() ? -1 : line.at("x").get<double>();
    if (line.at("x_label") == "slot / target tokens") x = std::round(x * kBins) / kBins;
    Row& row = series[line.at("series")][x];
    const double uplift = line.at("reference_uplift");
    const bool own = line.at("condition") == "transfer";
    add(own ? row.own : row.foreign, uplift);
    if (!own) continue;
    add(row.contrast, uplift - line.at("twin_uplift").get<double>());
    if (line.at("mode").is_string() && line.at("probes").contains(line.at("mode").get<std::string>()))
      add(row.mode, line.at("probes").at(line.at("mode").get<std::string>()).at("uplift"));
  }
  std::string out = fmt::format("\n{:<22} {:>7} {:>8} {:>11} {:>8} {:>8}\n", "series", "x", "uplift",
                                "mismatched", "content", "mode");
  for (const auto& [name, points] : series)
    for (const auto& [x, row] : points)
      out += fmt::format("{:<22} {:>7} {:>8.2f} {:>11.2f} {:>8.2f} {:>8}\n", name,
                         x < 0 ? "" : fmt::format("{:.4g}", x), row.own.value(), row.foreign.value(),
                         row.contrast.value(),
                         row.mode.count == 0 ? "" : fmt::format("{:.2f}", row.mode.value()));
  return out;
}

}  // namespace kvfold
