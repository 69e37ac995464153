#include "experiments/harness/outcome.h"

#include <fmt/core.h>
#include <utf8proc.h>

#include <algorithm>

namespace kvfold {
namespace {

std::string join(const std::vector<std::string>& words, const char* between) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

std::string number(std::optional<double> value) {
  if (!value) return "-";
  if (*value >= 10000) return fmt::format("{:.1e}", *value);
  return fmt::format("{:.2f}", *value);
}

// Text on one line of at most `width` terminal columns.
std::string one_line(const std::string& text, int width) {
  std::string out;
  int used = 0;
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                                static_cast<utf8proc_ssize_t>(text.size() - at), &c);
    const size_t length = n > 0 ? static_cast<size_t>(n) : 1;
    std::string piece = c == '\n' ? "\\n" : n > 0 && utf8proc_charwidth(c) > 0 ? text.substr(at, length) : "";
    const int columns = c == '\n' ? 2 : n > 0 ? utf8proc_charwidth(c) : 0;
    at += length;
    if (used + columns > width - 3 && at < text.size()) return out + "...";
    out += piece;
    used += columns;
  }
  return out;
}

}  // namespace

const Outcome& TrialOutcome::of(Condition condition) const {
  const auto at = std::find_if(outcomes.begin(), outcomes.end(),
                               [&](const Outcome& o) { return o.condition == condition; });
  KVFOLD_CHECK(at != outcomes.end());
  return *at;
}

nlohmann::ordered_json to_json(const std::string& phase, const FramedTrial& trial, const Outcome& o) {
  const auto optional = [](std::optional<double> value) {
    return value ? nlohmann::ordered_json(*value) : nullptr;
  };
  return {{"phase", phase},
          {"trial", trial.trial->name},
          {"framing", framing_name(trial.framing)},
          {"condition", condition_name(o.condition)},
          {"source", trial.source_text},
          {"target", trial.target_text},
          {"output", o.output},
          {"output_ids", o.continuation.ids},
          {"ended", o.continuation.ended},
          {"stall", o.stall},
          {"markers", o.markers},
          {"markers_wanted", trial.trial->markers},
          {"perplexity_own", optional(o.perplexity_own)},
          {"perplexity_baseline", optional(o.perplexity_baseline)},
          {"kl_baseline", o.kl},
          {"injected_key_norm", o.injected.keys},
          {"injected_value_norm", o.injected.values},
          {"natural_key_norm", o.natural.keys},
          {"natural_value_norm", o.natural.values}};
}

std::string format_table(const Experiment& experiment, std::span<const TrialOutcome> trials, int width,
                         bool colour) {
  const auto style = [&](const char* code, const std::string& text) {
    return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
  };
  constexpr int kFixed = 66;  // columns before the output
  const int room = std::max(20, width - kFixed);
  std::string out = style("1", fmt::format("Phase {}: {}", experiment.phase, experiment.question)) + "\n";
  const Trial* shown = nullptr;
  for (const TrialOutcome& trial : trials) {
    if (trial.trial->trial != shown) {
      shown = trial.trial->trial;
      out += fmt::format("\n\"{}\" -> \"{}\"   looking for: {}\n", shown->source, shown->target,
                         join(shown->markers, ", "));
      out += fmt::format("{:<7} {:<11} {:<14} {:>8} {:>8} {:>6} {:>6}  output\n", "framing", "condition",
                         "found", "ppl", "ppl|base", "KL", "|K|");
    }
    for (const Outcome& o : trial.outcomes) {
      const std::string found = one_line(join(o.markers, ","), 14);
      const std::string padded =
          found + std::string(static_cast<size_t>(std::max(0, 14 - static_cast<int>(found.size()))), ' ');
      const bool all = !o.markers.empty() && o.markers.size() == shown->markers.size();
      out +=
          fmt::format("{:<7} {:<11} {} {:>8} {:>8} {:>6.2f} {:>6}  {}\n", framing_name(trial.trial->framing),
                      condition_name(o.condition), all ? style("32", padded) : padded,
                      number(o.perplexity_own), number(o.perplexity_baseline), o.kl,
                      o.injected.keys > 0 ? fmt::format("{:.1f}", o.injected.keys) : "-",
                      o.stall ? style("2", "(ended at once)") : one_line(o.output, room));
    }
  }
  out += "\n";
  for (const TrialOutcome& trial : trials) {
    const Trial& t = *trial.trial->trial;
    const auto phrase = [&](Condition condition) {
      const Outcome& o = trial.of(condition);
      return o.stall             ? std::string("ends at once")
             : o.markers.empty() ? std::string("none")
                                 : join(o.markers, ", ");
    };
    const bool success = trial.of(Condition::kTransfer).markers.size() == t.markers.size() &&
                         trial.of(Condition::kBaseline).markers.empty();
    out +=
        fmt::format("{:<18} {:<7} transfer: {}; baseline: {}{}\n", t.name, framing_name(trial.trial->framing),
                    phrase(Condition::kTransfer), phrase(Condition::kBaseline),
                    success ? style("32", "   <- the source, and only with its cache") : "");
  }
  return out + "\n" + experiment.reading + "\n";
}

}  // namespace kvfold
