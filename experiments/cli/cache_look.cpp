// cache info, compare, statistics: what is in cache files, in words and numbers.
#include <fmt/core.h>

#include <algorithm>

#include "engine/kv/statistics.h"
#include "engine/printable.h"
#include "experiments/cli/cache_files.h"

namespace kvfold::cli {
namespace {

using nlohmann::ordered_json;

const char* part_name(Part part) { return part == Part::kKey ? "k" : "v"; }

// [layers][kv_heads] rows held.
ordered_json held_rows(const KvCache& cache) {
  ordered_json out = ordered_json::array();
  for (int layer = 0; layer < cache.shape().layers; ++layer) {
    out.push_back(ordered_json::array());
    for (int head = 0; head < cache.shape().kv_heads; ++head)
      out.back().push_back(cache.lanes().table(Part::kKey, cache.shape().lane(layer, head)).rows());
  }
  return out;
}

ordered_json describe(const OpenCaches& in) {
  const KvCache& cache = in.caches[0];
  const CacheModelInfo& model = in.model;
  const Rows& rows = cache.rows();
  ordered_json origins = ordered_json::array();
  for (const Origin& o : rows.origins) origins.push_back({o.source, o.row, operation_names(o.operations)});
  return {{"file", in.paths[0]},
          {"model",
           {{"name", model.name}, {"architecture", model.architecture}, {"fingerprint", model.fingerprint}}},
          {"rope",
           {{"base", model.rope_base},
            {"pairing", model.rope_pairing == RopePairing::kInterleaved ? "interleaved" : "half-split"},
            {"rotary_dim", model.rotary_dim}}},
          {"dtype", cache_type_name(cache.type())},
          {"layers", cache.shape().layers},
          {"kv_heads", cache.shape().kv_heads},
          {"head_dim", cache.shape().head_dim},
          {"rows", cache.size()},
          {"next_position", cache.next_position()},
          {"pages", in.pool->pages_held()},
          {"page_bytes", in.pool->page_bytes()},
          {"tokens", rows.tokens},
          {"positions", rows.positions},
          {"sources", rows.sources},
          {"origins", origins},
          {"held_rows", held_rows(cache)}};
}

// "12 rows of fed (shift), 3 of other": what origins say, in the order of first appearance.
std::string origin_summary(const Rows& rows) {
  std::vector<std::pair<std::string, int>> counts;
  for (const Origin& o : rows.origins) {
    const std::string operations = operation_names(o.operations);
    const std::string name = rows.sources[o.source] + (operations.empty() ? "" : " +" + operations);
    const auto at =
        std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == name; });
    if (at == counts.end()) {
      counts.emplace_back(name, 1);
    } else {
      ++at->second;
    }
  }
  std::string out;
  for (const auto& [name, count] : counts)
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", count, name);
  return out.empty() ? "none" : out;
}

Status run_info(const std::string& path, bool json) {
  KVFOLD_ASSIGN_OR_RETURN(const OpenCaches in, open_caches({path}));
  if (json) return print_json(describe(in)), Status{};
  const KvCache& cache = in.caches[0];
  int least = cache.size();
  for (int lane = 0; lane < cache.shape().lanes(); ++lane)
    least = std::min(least, cache.lanes().table(Part::kKey, lane).rows());
  fmt::print("model      {} ({}, {})\n", one_line(in.model.name), one_line(in.model.architecture),
             one_line(in.model.fingerprint));
  fmt::print("shape      {} layers x {} KV heads x {}, {}\n", cache.shape().layers, cache.shape().kv_heads,
             cache.shape().head_dim, cache_type_name(cache.type()));
  fmt::print("rows       {}{}\n", cache.size(),
             least == cache.size() ? "" : fmt::format(", of which lanes hold {} or more", least));
  fmt::print("positions  {}; next {}\n", position_runs(cache.rows().positions), cache.next_position());
  fmt::print("origin     {}\n", one_line(origin_summary(cache.rows())));
  fmt::print("pages      {} of {} bytes\n", in.pool->pages_held(), in.pool->page_bytes());
  return {};
}

Action declare_info(CLI::App& app) {
  struct Options {
    std::string in;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("IN", options->in, "a cache file")->required();
  app.add_flag("--json", options->json, "print all of it as JSON, tokens, positions and origins too");
  return [options] { return run_info(options->in, options->json); };
}

ordered_json to_json(const LaneDistance& d) {
  return {{"rows", d.rows},         {"only_a", d.only_a},           {"only_b", d.only_b},  {"rms", d.rms},
          {"relative", d.relative}, {"mean_cosine", d.mean_cosine}, {"largest", d.largest}};
}

// Whether everything that a cache file holds of both is the same, bits of vectors included.
bool same_rows(const KvCache& a, const KvCache& b) {
  return a.rows().tokens == b.rows().tokens && a.rows().positions == b.rows().positions &&
         a.next_position() == b.next_position();
}

Status run_compare(const std::string& a, const std::string& b, bool json) {
  KVFOLD_ASSIGN_OR_RETURN(const OpenCaches in, open_caches({a, b}));
  const KvCache& x = in.caches[0];
  const KvCache& y = in.caches[1];
  ordered_json lanes = ordered_json::array();
  bool equal = same_rows(x, y);
  if (!json) fmt::print("layer head part    rows only A only B    relative      cosine     largest\n");
  for (int lane = 0; lane < x.shape().lanes(); ++lane)
    for (const Part part : {Part::kKey, Part::kValue}) {
      const LaneDistance d = lane_distance(x, y, part, lane);
      const int layer = lane / x.shape().kv_heads;
      const int head = lane % x.shape().kv_heads;
      equal &= d.largest == 0 && d.only_a == 0 && d.only_b == 0;
      if (json) {
        ordered_json entry = {{"layer", layer}, {"head", head}, {"part", part_name(part)}};
        entry.update(to_json(d));
        lanes.push_back(std::move(entry));
      } else {
        fmt::print("{:>5} {:>4} {:>4} {:>7} {:>6} {:>6} {:>11.4g} {:>11.6f} {:>11.4g}\n", layer, head,
                   part_name(part), d.rows, d.only_a, d.only_b, d.relative, d.mean_cosine, d.largest);
      }
    }
  if (json) {
    print_json({{"equal", equal},
                {"tokens_equal", x.rows().tokens == y.rows().tokens},
                {"positions_equal", x.rows().positions == y.rows().positions},
                {"rows", {x.size(), y.size()}},
                {"lanes", std::move(lanes)}});
  } else {
    fmt::print("{}\n", equal ? "equal: tokens, positions and vectors" : "different");
  }
  return {};
}

Action declare_compare(CLI::App& app) {
  struct Options {
    std::string a, b;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("A", options->a, "a cache file")->required();
  app.add_option("B", options->b, "a cache file of the same model")->required();
  app.add_flag("--json", options->json, "print the distances of every lane as JSON");
  return [options] { return run_compare(options->a, options->b, options->json); };
}

ordered_json to_json(const LaneStatistics& s) {
  return {{"rows", s.rows},
          {"mean", s.mean},
          {"deviation", s.deviation},
          {"mean_norm", s.mean_norm},
          {"norm_deviation", s.norm_deviation},
          {"least_norm", s.least_norm},
          {"largest_norm", s.largest_norm},
          {"spectral_entropy", s.spectral_entropy},
          {"effective_rank", s.effective_rank},
          {"rank_90", s.rank_90},
          {"singular_values", s.singular_values}};
}

Status run_statistics(const std::string& path, const std::string& select, bool json) {
  KVFOLD_ASSIGN_OR_RETURN(const OpenCaches in, open_caches({path}));
  KVFOLD_ASSIGN_OR_RETURN(const Selection selection, select_in(in, 0, select));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(in.caches[0], selection));
  ordered_json lanes = ordered_json::array();
  if (!json) fmt::print("layer head part    rows  mean norm  deviation  eff. rank  rank 90%\n");
  for (const int layer : selection.layers)
    for (const int head : selection.heads)
      for (const Part part : {Part::kKey, Part::kValue}) {
        if (part == Part::kKey ? !selection.keys : !selection.values) continue;
        const LaneStatistics s = lane_statistics(slice.lanes, part, slice.shape().lane(layer, head));
        if (json) {
          ordered_json entry = {{"layer", layer}, {"head", head}, {"part", part_name(part)}};
          entry.update(to_json(s));
          lanes.push_back(std::move(entry));
        } else {
          fmt::print("{:>5} {:>4} {:>4} {:>7} {:>10.4g} {:>10.4g} {:>10.2f} {:>9}\n", layer, head,
                     part_name(part), s.rows, s.mean_norm, s.deviation, s.effective_rank, s.rank_90);
        }
      }
  if (json) print_json({{"file", path}, {"lanes", std::move(lanes)}});
  return {};
}

Action declare_statistics(CLI::App& app) {
  struct Options {
    std::string in, select;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("IN", options->in, "a cache file")->required();
  app.add_option("--select", options->select, "which part: \"layers=0-9,20 heads=* parts=k rows=3-12\"");
  app.add_flag("--json", options->json, "print them all as JSON, with the singular values of every lane");
  return [options] { return run_statistics(options->in, options->select, options->json); };
}

}  // namespace

std::vector<CacheCommand> look_commands() {
  return {{"info", "what a cache file holds; every checksum is checked", declare_info},
          {"compare", "distances between two caches, by lane", declare_compare},
          {"statistics", "norms, spectra and effective ranks, by lane", declare_statistics}};
}

}  // namespace kvfold::cli
