// What each sweep puts into the cache.
#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "engine/kv/ops.h"
#include "experiments/harness/sweep.h"

namespace kvfold {
namespace {

using Points = Result<std::vector<SweepPoint>>;

std::vector<int> range(int begin, int end) {
  std::vector<int> out(static_cast<size_t>(std::max(0, end - begin)));
  std::iota(out.begin(), out.end(), begin);
  return out;
}

std::vector<int> all_but(int count, int left_out) {
  std::vector<int> out = range(0, count);
  std::erase(out, left_out);
  return out;
}

std::string layers_text(int first, int last) {
  return first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
}

std::span<const TokenId> all_but_last(std::span<const TokenId> tokens) {
  return tokens.first(tokens.size() - 1);
}

KvSlice rows_of(const KvCache& cache, int begin) {
  Selection selection = Selection::all(cache.shape(), cache.size());
  selection.rows = range(begin, cache.size());
  Result<KvSlice> slice = extract(cache, selection);
  KVFOLD_CHECK(slice.ok());
  return std::move(*slice);
}

// ---- position ----

constexpr int kLargestGap = 512;

// The positions that are tried at a slot: all gaps where `gaps`.
std::vector<std::string> position_rules(bool gaps) {
  std::vector<std::string> out = {"follow", "keep", "overlap"};
  for (int gap = 1; gaps && gap <= kLargestGap; gap *= 2) out.push_back(fmt::format("gap:{}", gap));
  return out;
}

class PositionPoints {
 public:
  explicit PositionPoints(const SweepSource& in) : in_(in), rows_(rows_of(in.source, in.begin)) {}

  // `alone`: the prefix and the target but its last token, as they are without a source; `whole`: with it.
  Points make(const KvCache& alone, const KvCache& whole) {
    const auto tokens = static_cast<int>(in_.target.size());
    for (int slot = 0; slot < tokens; ++slot)
      for (const std::string& rule : position_rules(slot == 0 || slot == tokens / 2)) {
        KVFOLD_ASSIGN_OR_RETURN(const KvCache before, truncate(alone, in_.begin + slot));
        KVFOLD_RETURN_IF_ERROR(add(before, in_.begin + slot, rule, slot == 0 ? "start" : "middle", slot,
                                   "fed", all_but_last(in_.target).subspan(static_cast<size_t>(slot))));
        KVFOLD_RETURN_IF_ERROR(
            add(alone, in_.begin + slot, rule, slot == 0 ? "start" : "middle", slot, "kept", {}));
      }
    for (const std::string& rule : position_rules(true))
      KVFOLD_RETURN_IF_ERROR(add(whole, whole.size(), rule, "end", tokens, "kept", {}));
    return std::move(out_);
  }

 private:
  Status add(const KvCache& to, int at, const std::string& rule, const char* where, int slot,
             const char* rest, std::span<const TokenId> tokens) {
    KVFOLD_ASSIGN_OR_RETURN(const InsertPositions positions, InsertPositions::parse(rule));
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache, insert(to, rows_, at, positions));
    const bool gap = positions.kind == InsertPositions::Kind::kGap;
    const double share = static_cast<double>(slot) / static_cast<double>(in_.target.size());
    SweepPoint point{fmt::format("{}:{}/{}/{}", where, slot, rule, rest),
                     gap ? fmt::format("{}/gap/{}", where, rest) : fmt::format("{}/{}", rule, rest),
                     gap ? positions.value : share,
                     gap ? "gap" : "slot / target tokens",
                     "",
                     "",
                     {{"at", where},
                      {"slot", slot},
                      {"slot_share", share},
                      {"positions", rule},
                      {"gap", gap ? nlohmann::ordered_json(positions.value) : nullptr},
                      {"rest", rest}},
                     std::move(cache),
                     tokens};
    out_.push_back(std::move(point));
    return {};
  }

  const SweepSource& in_;
  KvSlice rows_;
  std::vector<SweepPoint> out_;
};

// ---- parts of a source that lanes lack ----

// The source's cache without its rows in the lanes outside `layers` x `heads`. With the sink kept, its first
// row stays in all of them.
Result<KvCache> only(const SweepSource& in, const std::vector<int>& layers, const std::vector<int>& heads,
                     bool sink) {
  const CacheShape& shape = in.source.shape();
  const int first = in.begin + (sink ? 1 : 0);
  KvCache cache = in.source.fork();
  const auto drop = [&](std::vector<int> of_layers, std::vector<int> of_heads) -> Status {
    const Selection gone{std::move(of_layers), std::move(of_heads), range(first, in.source.size()), true,
                         true};
    if (gone.empty()) return {};
    KVFOLD_ASSIGN_OR_RETURN(cache, erase(cache, gone));
    return {};
  };
  const auto complement = [](int count, const std::vector<int>& of) {
    std::vector<int> out;
    for (int i = 0; i < count; ++i)
      if (!std::binary_search(of.begin(), of.end(), i)) out.push_back(i);
    return out;
  };
  KVFOLD_RETURN_IF_ERROR(drop(layers, complement(shape.kv_heads, heads)));
  KVFOLD_RETURN_IF_ERROR(drop(complement(shape.layers, layers), range(0, shape.kv_heads)));
  return cache;
}

const char* sink_name(bool kept) { return kept ? "kept" : "free"; }

class PartialPoints {
 public:
  explicit PartialPoints(const SweepSource& in) : in_(in), layers_(in.source.shape().layers) {}

  Points make() {
    for (const bool sink : {true, false}) {
      for (int i = 0; i < layers_; ++i) KVFOLD_RETURN_IF_ERROR(add("single", i, i, i, sink));
      for (int i = 0; i + 1 < layers_; ++i) KVFOLD_RETURN_IF_ERROR(add("prefix", 0, i, i, sink));
      for (int i = 1; i < layers_; ++i) KVFOLD_RETURN_IF_ERROR(add("suffix", i, layers_ - 1, i, sink));
      for (int t = 0; t < 3; ++t)
        KVFOLD_RETURN_IF_ERROR(add("third", t * layers_ / 3, (t + 1) * layers_ / 3 - 1, t, sink));
      KVFOLD_RETURN_IF_ERROR(add("none", 0, -1, std::nullopt, sink));
    }
    KVFOLD_RETURN_IF_ERROR(add("all", 0, layers_ - 1, std::nullopt, true));
    return std::move(out_);
  }

 private:
  Status add(const char* which, int first, int last, std::optional<double> x, bool sink) {
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache,
                            only(in_, range(first, last + 1), range(0, in_.source.shape().kv_heads), sink));
    const std::string layers = first <= last ? layers_text(first, last) : "";
    out_.push_back({fmt::format("{}:{}/{}", which, layers, sink_name(sink)),
                    fmt::format("{}/{}", which, sink_name(sink)),
                    x,
                    which == std::string("third") ? "third of the layers" : "layer",
                    "layers=" + layers,
                    sink_name(sink),
                    {{"which", which}, {"layers", layers}},
                    std::move(cache),
                    all_but_last(in_.target)});
    return {};
  }

  const SweepSource& in_;
  int layers_;
  std::vector<SweepPoint> out_;
};

// ---- splices into neutral text ----

class LayerPoints {
 public:
  explicit LayerPoints(const SweepSource& in) : in_(in), layers_(in.source.shape().layers) {}

  Points make() {
    for (const bool sink : {true, false}) {
      for (int i = 0; i < layers_; ++i) {
        KVFOLD_RETURN_IF_ERROR(add("single", range(i, i + 1), fmt::format("{}", i), i, sink));
        KVFOLD_RETURN_IF_ERROR(add("all-but", all_but(layers_, i), fmt::format("all but {}", i), i, sink));
      }
      for (int t = 0; t < 3; ++t) {
        const int first = t * layers_ / 3;
        const int last = (t + 1) * layers_ / 3 - 1;
        KVFOLD_RETURN_IF_ERROR(add("third", range(first, last + 1), layers_text(first, last), t, sink));
      }
      KVFOLD_RETURN_IF_ERROR(add("all", range(0, layers_), layers_text(0, layers_ - 1), std::nullopt, sink));
    }
    KVFOLD_RETURN_IF_ERROR(add("none", {}, "", std::nullopt, true));
    return std::move(out_);
  }

 private:
  // With the sink kept, the neutral text's first row stays in every layer.
  Status add(const char* which, const std::vector<int>& layers, const std::string& name,
             std::optional<double> x, bool sink) {
    Selection selection{layers, range(0, in_.source.shape().kv_heads),
                        range(in_.begin + (sink ? 1 : 0), in_.source.size()), true, true};
    KvCache cache = in_.filler.fork();
    if (!selection.empty()) {
      KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(in_.source, selection));
      KVFOLD_ASSIGN_OR_RETURN(cache, overwrite(cache, slice, selection.rows));
    }
    out_.push_back({fmt::format("{}:{}/{}", which, name, sink_name(sink)),
                    fmt::format("{}/{}", which, sink_name(sink)),
                    x,
                    which == std::string("third") ? "third of the layers" : "layer",
                    "layers=" + name,
                    sink_name(sink),
                    {{"which", which}, {"layers", name}},
                    std::move(cache),
                    all_but_last(in_.target)});
    return {};
  }

  const SweepSource& in_;
  int layers_;
  std::vector<SweepPoint> out_;
};

// ---- K, V and heads ----

class ComponentPoints {
 public:
  explicit ComponentPoints(const SweepSource& in) : in_(in), shape_(in.source.shape()) {}

  Points make() {
    for (const bool sink : {true, false}) {
      for (const char* fill : {"mean", "filler"}) {
        KVFOLD_RETURN_IF_ERROR(add_part("k", fill, sink));
        KVFOLD_RETURN_IF_ERROR(add_part("v", fill, sink));
        KVFOLD_RETURN_IF_ERROR(add_part("", fill, sink));
      }
      for (int head = 0; head < shape_.kv_heads; ++head) {
        KVFOLD_RETURN_IF_ERROR(add_lanes("head", range(0, shape_.layers), head, std::nullopt, sink));
        for (int layer = 0; layer < shape_.layers; ++layer)
          KVFOLD_RETURN_IF_ERROR(add_lanes("layer-head", {layer}, head, layer, sink));
      }
    }
    return std::move(out_);
  }

 private:
  using Json = nlohmann::ordered_json;

  // One part of the source's rows, the other made of something else; "" is neither.
  Status add_part(const std::string& part, const std::string& fill, bool sink) {
    const std::vector<int> rows = range(in_.begin + (sink ? 1 : 0), in_.source.size());
    const Selection other{range(0, shape_.layers), range(0, shape_.kv_heads), rows, part != "k", part != "v"};
    KVFOLD_ASSIGN_OR_RETURN(KvSlice made, extract(fill == "mean" ? in_.source : in_.filler, other));
    if (fill == "mean") {
      KVFOLD_ASSIGN_OR_RETURN(made, noise(made, NoiseKind::kMean, 0));
    }
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache, overwrite(in_.source, made, rows));
    const std::string name = part.empty() ? "neither" : part;
    push(fmt::format("part:{}/{}/{}", name, fill, sink_name(sink)),
         fmt::format("{}/{}/{}", name, fill, sink_name(sink)), std::nullopt, "", "parts=" + part, sink,
         {{"which", "part"}, {"parts", name}, {"fill", fill}, {"head", nullptr}, {"layer", nullptr}},
         std::move(cache));
    return {};
  }

  Status add_lanes(const char* which, const std::vector<int>& layers, int head, std::optional<int> layer,
                   bool sink) {
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache, only(in_, layers, {head}, sink));
    const std::string at = layer ? fmt::format("{}.{}", *layer, head) : fmt::format("{}", head);
    const std::string series = layer ? fmt::format("layer-head {}/{}", head, sink_name(sink))
                                     : fmt::format("head/{}", sink_name(sink));
    push(fmt::format("{}:{}/{}", which, at, sink_name(sink)), series, layer ? *layer : head,
         layer ? "layer" : "KV head",
         layer ? fmt::format("layers={} heads={}", *layer, head) : fmt::format("heads={}", head), sink,
         {{"which", which},
          {"parts", "kv"},
          {"fill", nullptr},
          {"head", head},
          {"layer", layer ? Json(*layer) : Json(nullptr)}},
         std::move(cache));
    return {};
  }

  void push(std::string point, std::string series, std::optional<double> x, std::string x_label,
            std::string selection, bool sink, Json keys, KvCache cache) {
    out_.push_back({std::move(point), std::move(series), x, std::move(x_label), std::move(selection),
                    sink_name(sink), std::move(keys), std::move(cache), all_but_last(in_.target)});
  }

  const SweepSource& in_;
  const CacheShape& shape_;
  std::vector<SweepPoint> out_;
};

bool states_fact(const Trial& trial) {
  return trial.family == "identity" || trial.family == "counterfactual";
}
bool sets_mode(const Trial& trial) {
  return trial.entity == "other" && (trial.mode == "confabulated" || trial.mode == "creative") &&
         trial.set != "plan";
}
const std::vector<Sweep::From> kFacts = {{"2a", states_fact}, {"2b", states_fact}};

}  // namespace

const Sweep kPositionSweep = {
    "position",
    "Does cache position matter? (inject at start vs. middle vs. end)",
    "fed: the target's tokens behind the slot are computed with the source before them. kept: they are "
    "computed alone,\n"
    "and only the last token meets the source.",
    {"at", "slot", "slot_share", "positions", "gap", "rest"},
    kFacts,
    [](const SweepSource& in) { return PositionPoints(in).make(in.alone, in.whole); }};

const Sweep kPartialSweep = {"partial",
                             "Does partial cache transfer work? (some layers but not others)",
                             "Layers outside the selection do not hold the source's rows. Sink kept: they "
                             "hold its first row, the attention sink.",
                             {"which", "layers"},
                             kFacts,
                             [](const SweepSource& in) { return PartialPoints(in).make(); }};

const Sweep kLayerSweep = {
    "layers",
    "Do specific layers carry more \"cognitive mode\" information?",
    "The source's rows replace those of neutral text in some layers. content: the reference answer's uplift "
    "less the\n"
    "twin's; mode: the uplift of an answer of the source's mode whose words are in no source; the report "
    "takes a "
    "factual one's off it.",
    {"which", "layers"},
    {{"2d", sets_mode}},
    [](const SweepSource& in) { return LayerPoints(in).make(); }};

const Sweep kComponentSweep = {"components",
                               "Can we identify which cache components carry content vs. style?",
                               "K or V alone: the other half of a row is the lane's mean, or that of neutral "
                               "text. Heads: the other lanes do not hold\n"
                               "the rows.",
                               {"which", "parts", "fill", "head", "layer"},
                               kFacts,
                               [](const SweepSource& in) { return ComponentPoints(in).make(); }};

}  // namespace kvfold
