#include "experiments/harness/table.h"

#include <fmt/core.h>
#include <utf8proc.h>

#include <algorithm>
#include <map>

#include "engine/file.h"
#include "engine/printable.h"
#include "engine/strict_json.h"

namespace kvfold {
namespace {

using nlohmann::json;

// A text of a record, which may hold anything.
std::string shown(const json& text) { return one_line(text.get_ref<const std::string&>()); }

std::string join(const json& words, const char* between) {
  std::string out;
  for (const json& word : words) out += (out.empty() ? "" : between) + shown(word);
  return out;
}

std::string number(const json& value) {
  if (value.is_null()) return "-";
  const auto x = value.get<double>();
  return x >= 10000 ? fmt::format("{:.1e}", x) : fmt::format("{:.2f}", x);
}

// Text on one line of at most `width` terminal columns.
std::string fit(const std::string& text, int width) {
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

class Table {
 public:
  Table(std::span<const json> lines, int width, bool colour)
      : lines_(lines), width_(width), colour_(colour) {}

  std::string format() const { return cases() + families() + verdicts(); }

 private:
  std::string style(const char* code, const std::string& text) const {
    return colour_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
  }

  // What a line says, and what it says with end tokens banned for the first where it ends at once.
  std::string output(const json& line, int room) const {
    if (!line.at("stall").get<bool>()) return fit(line.at("output"), room);
    const std::string mark = "(ends at once; else:) ";
    return style("2",
                 mark + fit(line.at("banned_output"), std::max(8, room - static_cast<int>(mark.size()))));
  }

  std::string row(const json& line) const {
    constexpr int kFixed = 77;  // columns before the output
    const std::string found = fit(join(line.at("markers"), ","), 14);
    const std::string padded =
        found + std::string(static_cast<size_t>(std::max(0, 14 - static_cast<int>(found.size()))), ' ');
    const bool all = !found.empty() && line.at("markers").size() == line.at("markers_wanted").size();
    return fmt::format("{:<7} {:<13} {} {:>8} {:>8} {:>6} {:>7} {:>6}  {}\n", shown(line.at("framing")),
                       shown(line.at("condition")), all ? style("32", padded) : padded,
                       number(line.at("perplexity_own")), number(line.at("perplexity_baseline")),
                       number(line.at("kl_baseline")), number(line.at("reference_uplift")),
                       number(line.at("injected_key_norm")), output(line, std::max(20, width_ - kFixed)));
  }

  std::string cases() const {
    std::string out;
    std::string trial;
    for (const json& line : lines_) {
      if (line.at("set") != "plan") continue;
      if (line.at("trial") != trial) {
        trial = line.at("trial");
        const json& raw = source_line(line);
        out += fmt::format("\n{}: {} -> {}   looking for: {}\n", one_line(trial),
                           one_line(raw.at("source").dump()), one_line(raw.at("target").dump()),
                           join(line.at("markers_wanted"), ", "));
        out += fmt::format("{:<7} {:<13} {:<14} {:>8} {:>8} {:>6} {:>7} {:>6}  output\n", "framing",
                           "condition", "found", "ppl", "ppl|base", "KL", "uplift", "|K|");
      }
      out += row(line);
    }
    return out;
  }

  // The line of a trial that shows its texts: transfer, in the first framing. `first`: any line of the trial.
  const json& source_line(const json& first) const {
    const auto at = std::find_if(lines_.begin(), lines_.end(), [&](const json& line) {
      return line.at("trial") == first.at("trial") && line.at("condition") == "transfer";
    });
    return at == lines_.end() ? first : *at;
  }

  // Of each family and framing: how often transfer and its controls show all of the source's markers, and the
  // middle of their reference uplifts.
  std::string families() const {
    struct Group {
      int trials = 0, found = 0, stalls = 0;
      std::vector<double> uplifts;
    };
    std::map<std::pair<std::string, std::string>, std::map<std::string, Group>> groups;
    for (const json& line : lines_) {
      if (line.at("set") == "plan") continue;
      Group& g = groups[{line.at("family"), line.at("framing")}][line.at("condition")];
      ++g.trials;
      g.found += line.at("markers").size() == line.at("markers_wanted").size() ? 1 : 0;
      g.stalls += line.at("stall").get<bool>() ? 1 : 0;
      g.uplifts.push_back(line.at("reference_uplift"));
    }
    if (groups.empty()) return "";
    std::string out = fmt::format("\n{:<15} {:<7} {:<13} {:>6} {:>10} {:>6} {:>14}\n", "family", "framing",
                                  "condition", "trials", "all found", "stalls", "median uplift");
    for (auto& [key, conditions] : groups)
      for (const char* condition : {"baseline", "noise", "filler", "mismatched", "twin", "transfer"}) {
        Group& g = conditions[condition];
        std::sort(g.uplifts.begin(), g.uplifts.end());
        out += fmt::format("{:<15} {:<7} {:<13} {:>6} {:>9.0f}% {:>6} {:>14.2f}\n", one_line(key.first),
                           one_line(key.second), condition, g.trials, 100.0 * g.found / std::max(1, g.trials),
                           g.stalls, g.uplifts.empty() ? 0 : g.uplifts[g.uplifts.size() / 2]);
      }
    return out;
  }

  std::string verdicts() const {
    std::map<std::string, const json*> baseline;
    std::string out = "\n";
    const auto phrase = [](const json& line) -> std::string {
      if (line.at("stall").get<bool>()) {
        const std::string banned = join(line.at("banned_markers"), ", ");
        return "ends at once (else " + (banned.empty() ? "none" : banned) + ")";
      }
      return line.at("markers").empty() ? "none" : join(line.at("markers"), ", ");
    };
    for (const json& line : lines_) {
      if (line.at("set") != "plan") continue;
      if (line.at("condition") == "baseline") baseline[line.at("framing")] = &line;
      if (line.at("condition") != "transfer") continue;
      const json& base = *baseline.at(line.at("framing"));
      // A baseline that ends at once may still know: what it says without that counts too.
      const bool known = !base.at("markers").empty() || !base.at("banned_markers").empty();
      const bool success = line.at("markers").size() == line.at("markers_wanted").size() && !known;
      out += fmt::format("{:<24} {:<7} transfer: {}; baseline: {}; answer's log-probability {:+.2f} nats{}\n",
                         shown(line.at("trial")), shown(line.at("framing")), phrase(line), phrase(base),
                         line.at("reference_uplift").get<double>(),
                         success ? style("32", "   <- the source, and only with its cache") : "");
    }
    return out;
  }

  std::span<const json> lines_;
  int width_;
  bool colour_;
};

}  // namespace

Result<std::vector<json>> read_lines(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  std::vector<json> out;
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = std::min(text.find('\n', begin), text.size());
    const std::string where = fmt::format("{}:{}: ", path, out.size() + 1);
    Result<json> line = parse_json(std::string_view(text).substr(begin, end - begin));
    if (!line.ok()) return line.status().with_prefix(where);
    if (!line->is_object()) return Status::error(where + "expected a JSON object");
    out.push_back(std::move(*line));
  }
  return out;
}

Status not_of_a_run(const std::string& path, const std::exception& error) {
  return Status::error(
      fmt::format("{}: found records that are not of a run: {}", path, printable(error.what())));
}

std::string format_table(std::span<const json> lines, int width, bool colour) {
  return Table(lines, width, colour).format();
}

}  // namespace kvfold
