#include "experiments/harness/outcome.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvfold {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
Json optional(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

double mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

// Four significant digits: arrays are for maps and means, and would otherwise be most of the file.
double rounded(double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double scale = std::pow(10.0, 3 - std::floor(std::log10(std::abs(x))));
  return std::round(x * scale) / scale;
}
Json rounded(const std::vector<double>& x) {
  Json out = Json::array();
  for (const double value : x) out.push_back(rounded(value));
  return out;
}
Json rounded(const std::vector<std::vector<double>>& x) {
  Json out = Json::array();
  for (const std::vector<double>& row : x) out.push_back(rounded(row));
  return out;
}

Json uplift(const AnswerScore& score, const AnswerScore& baseline, bool per_token) {
  if (score.tokens == 0) return nullptr;
  return (score.log_probability - baseline.log_probability) / (per_token ? score.tokens : 1);
}

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

// Keys that an output and its banned twin share; `name` is "" or "banned_".
void add_shape(Json& line, const std::string& name, const Utterance* said) {
  const auto put = [&](const char* key, Json value) {
    line[name + key] = said == nullptr || said->ids.empty() ? Json(nullptr) : std::move(value);
  };
  const TextShape shape = said != nullptr ? said->shape : TextShape{};
  put("perplexity_own", said != nullptr ? optional(said->perplexity_own) : nullptr);
  put("perplexity_baseline", said != nullptr ? optional(said->perplexity_baseline) : nullptr);
  put("copy_run", shape.copy_run);
  put("copy_share", optional(shape.copy_share));
  put("distinct_1", optional(shape.distinct[0]));
  put("distinct_2", optional(shape.distinct[1]));
  put("distinct_3", optional(shape.distinct[2]));
  put("longest_repeat", optional(shape.longest_repeat));
  put("zlib_ratio", optional(shape.zlib));
}

void add_identity(Json& line, const TrialOutcome& trial, const Outcome& o) {
  const FramedTrial& framed = *trial.trial;
  const Trial& t = *framed.trial;
  line["phase"] = t.phase;
  line["family"] = t.family;
  line["set"] = t.set;
  line["trial"] = t.id;
  line["item"] = t.item;
  line["framing"] = framing_name(framed.framing);
  line["condition"] = condition_name(o.condition);
  line["sweep"] = nullptr;
  line["seed"] = trial.seed;
  line["mode"] = text_or_null(t.mode);
  line["entity"] = text_or_null(t.entity);
  line["other_trial"] = o.condition == Condition::kMismatched ? Json(t.mismatched) : Json(nullptr);
  line["source"] = text_or_null(o.source_text);
  line["target"] = framed.target_text;
  line["source_tokens"] = o.source_tokens;
  line["target_tokens"] = framed.target.size();
  line["insertion"] = "start/follow";
  line["reference"] = t.answer;
  line["twin_reference"] = t.twin.answer;
  line["reference_tokens"] = o.reference.tokens;
  line["twin_reference_tokens"] = o.twin.tokens;
}

void add_output(Json& line, const TrialOutcome& trial, const Outcome& o) {
  const Trial& t = *trial.trial->trial;
  const Utterance* banned = o.banned ? &*o.banned : nullptr;
  line["output"] = o.said.text;
  line["output_ids"] = o.said.ids;
  line["output_tokens"] = o.said.ids.size();
  line["ended"] = o.ended;
  line["stall"] = o.stall;
  line["banned_output"] = banned != nullptr ? Json(banned->text) : Json(nullptr);
  line["banned_output_ids"] = banned != nullptr ? Json(banned->ids) : Json(nullptr);
  line["markers"] = o.said.markers;
  line["markers_wanted"] = t.markers;
  line["twin_markers"] = o.said.twin_markers;
  line["twin_markers_wanted"] = t.twin.markers;
  line["truth_markers"] = o.said.truth_markers;
  line["truth_markers_wanted"] = t.truth_markers;
  line["banned_markers"] = banned != nullptr ? Json(banned->markers) : Json(nullptr);
  line["banned_twin_markers"] = banned != nullptr ? Json(banned->twin_markers) : Json(nullptr);
  line["banned_truth_markers"] = banned != nullptr ? Json(banned->truth_markers) : Json(nullptr);
  add_shape(line, "", &o.said);
  add_shape(line, "banned_", banned);
  line["reference_copy_run"] = trial.reference_copy_run;
}

void add_scores(Json& line, const TrialOutcome& trial, const Outcome& o) {
  const Outcome& base = trial.of(Condition::kBaseline);
  line["kl_baseline"] = mean(o.kl);
  line["kl_positions"] = o.kl.size();
  line["kl_first"] = o.kl.front();
  line["ld"] = o.ld;
  line["tau"] = optional(transfer_fraction(o.ld, base.ld, trial.of(Condition::kText).ld));
  line["reference_logprob"] = o.reference.log_probability;
  line["reference_uplift"] = uplift(o.reference, base.reference, false);
  line["reference_uplift_per_token"] = uplift(o.reference, base.reference, true);
  line["twin_logprob"] = o.twin.log_probability;
  line["twin_uplift"] = uplift(o.twin, base.twin, false);
  line["twin_uplift_per_token"] = uplift(o.twin, base.twin, true);
  line["probes"] = Json::object();
  for (const auto& [name, score] : o.probes)
    line["probes"][name] = {{"logprob", score.log_probability},
                            {"uplift", uplift(score, base.probes.at(name), false)},
                            {"tokens", score.tokens}};
  line["truth_uplift"] = o.probes.contains("truth") ? line["probes"]["truth"]["uplift"] : Json(nullptr);
  line["source_word_uplift"] = o.marker_score - base.marker_score;
  line["decoy_uplift"] = o.decoy_score - base.decoy_score;
  const std::vector<double>& mass = o.attention.by_layer;
  line["attention_mass"] = mass.empty() ? Json(nullptr) : Json(mean(mass));
  line["attention_mass_no_sink"] = optional(o.attention.no_sink);
  line["attention_mass_by_layer"] = mass.empty() ? Json(nullptr) : rounded(mass);
  line["permuted_uplifts"] = o.permuted_uplifts.empty() ? Json(nullptr) : Json(o.permuted_uplifts);
}

// `prefix` is "injected" or "natural"; numbers on every line, arrays where `arrays`, maps where `maps`.
void add_signature(Json& line, const std::string& prefix, const CacheSignature& s, bool arrays, bool maps) {
  const bool any = s.rows > 0;
  for (const auto& [name, part] : {std::pair{"_key", &s.keys}, std::pair{"_value", &s.values}}) {
    const std::string key = prefix + name;
    line[key + "_norm"] = any ? Json(part->norm) : Json(nullptr);
    line[key + "_rank"] = any ? Json(part->rank) : Json(nullptr);
    line[key + "_rank_90"] = any ? Json(part->rank_90) : Json(nullptr);
    line[key + "_norm_lanes"] = any && arrays ? rounded(part->lane_norms) : Json(nullptr);
    line[key + "_rank_layers"] = any && arrays ? rounded(part->ranks) : Json(nullptr);
    line[key + "_rank_90_layers"] = any && arrays ? rounded(part->ranks_90) : Json(nullptr);
    line[key + "_norms"] = any && arrays && maps ? rounded(part->row_norms) : Json(nullptr);
  }
}

}  // namespace

const Outcome& TrialOutcome::of(Condition condition) const {
  const auto at = std::find_if(outcomes.begin(), outcomes.end(),
                               [&](const Outcome& o) { return o.condition == condition; });
  KVFOLD_CHECK(at != outcomes.end());
  return *at;
}

nlohmann::ordered_json to_json(const TrialOutcome& trial, const Outcome& o) {
  const bool plan = trial.trial->trial->set == "plan";
  Json line = Json::object();  // of null the library makes one that it cannot take apart where memory ends
  add_identity(line, trial, o);
  add_output(line, trial, o);
  add_scores(line, trial, o);
  add_signature(line, "injected", o.injected, true, plan);
  add_signature(line, "natural", trial.natural, o.condition == Condition::kBaseline, plan);
  return line;
}

}  // namespace kvfold
