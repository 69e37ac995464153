// inspect: what is in a cache, as tables in the terminal or as a page.
#include "experiments/cli/inspect.h"

#include <fmt/core.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "engine/attention_weights.h"
#include "engine/printable.h"
#include "experiments/cli/cache_files.h"
#include "experiments/cli/common.h"
#include "loaders/model_loader.h"

namespace kvfold::cli {
namespace {

struct Options {
  std::vector<std::string> caches;
  std::string model;
  std::string query;
  std::string html;
  bool rows = false;
  bool json = false;
};

// ---- what tokens say ----

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                                static_cast<utf8proc_ssize_t>(text.size() - at), &c);
    if (n <= 0) return false;
    at += static_cast<size_t>(n);
  }
  return true;
}

// A token's text; bytes that are no character by themselves as \xE2.
std::string token_text(const Tokenizer& tokenizer, TokenId id) {
  if (id < 0 || id >= tokenizer.size()) return fmt::format("#{}", id);
  std::string bytes = tokenizer.token_bytes(id);
  if (is_utf8(bytes)) return bytes;
  std::string out;
  for (const char c : bytes) out += fmt::format("\\x{:02X}", static_cast<uint8_t>(c));
  return out;
}

std::vector<std::string> token_texts(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::vector<std::string> out;
  for (const TokenId id : ids) out.push_back(token_text(tokenizer, id));
  return out;
}

// ---- opening ----

Result<Inspected> open(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(OpenCaches opened, open_caches({path}));
  Inspected out{path, std::move(opened.model), std::move(opened.caches[0]), {}, {}, {}, {}};
  for (int lane = 0; lane < out.cache.shape().lanes(); ++lane) {
    out.keys.push_back(lane_statistics(out.cache.lanes(), Part::kKey, lane));
    out.values.push_back(lane_statistics(out.cache.lanes(), Part::kValue, lane));
  }
  return out;
}

// The texts of the rows' tokens, from the model that is named or from one in weights/cache that made the
// cache.
Status add_texts(const std::string& model, Inspected& in) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string path,
                          model.empty() ? find_fetched_model(in.model.fingerprint) : resolve_model(model));
  if (path.empty()) return {};
  KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_model_source(path));
  if (source.fingerprint != in.model.fingerprint)
    return Status::error(fmt::format("{}: the cache is of another model: found '{}' ({}), expected {} ({})",
                                     in.path, printable(in.model.name), printable(in.model.fingerprint), path,
                                     source.fingerprint));
  const auto tokenizer = Tokenizer::create(source.vocabulary, source.storage);
  if (!tokenizer.ok()) return tokenizer.status().with_prefix(path + ": ");
  in.texts = token_texts(**tokenizer, in.cache.rows().tokens);
  return {};
}

// Weights that a page holds at most: 8 MB of them.
constexpr size_t kMostWeights = size_t{1} << 21;

// The attention of the query's last tokens, as many as fit, in all layers and heads, behind the file's rows.
Result<QueryAttention> attend(Session& session, const std::string& query, const Inspected& in) {
  const Model& model = session.model();
  const ModelConfig& config = model.config();
  QueryAttention out;
  KVFOLD_ASSIGN_OR_RETURN(out.tokens, encode(session, query));
  KVFOLD_ASSIGN_OR_RETURN(KvCache cache, load_cache(in.path, cache_model_info(model.source()),
                                                    model.cache_shape(), session.pool()));
  const auto count = static_cast<int>(out.tokens.size());
  out.texts = token_texts(session.tokenizer(), out.tokens);
  out.heads = config.heads;
  out.rows = cache.size() + count;
  const size_t lanes = static_cast<size_t>(config.layers) * static_cast<size_t>(config.heads);
  const size_t fit = std::max<size_t>(1, kMostWeights / (lanes * static_cast<size_t>(out.rows)));
  const int first = count - static_cast<int>(std::min<size_t>(fit, static_cast<size_t>(count)));
  out.queries.resize(static_cast<size_t>(count - first));
  std::iota(out.queries.begin(), out.queries.end(), first);
  out.weights.resize(lanes * out.queries.size() * static_cast<size_t>(out.rows));

  std::vector<int> layers(static_cast<size_t>(config.layers));
  std::vector<int> heads(static_cast<size_t>(config.heads));
  std::iota(layers.begin(), layers.end(), 0);
  std::iota(heads.begin(), heads.end(), 0);
  const auto keep = [&](int layer, int head, int at, std::span<const float> weights) {
    if (at < first) return;
    const size_t lane = static_cast<size_t>(layer) * heads.size() + static_cast<size_t>(head);
    const size_t row = lane * out.queries.size() + static_cast<size_t>(at - first);
    std::copy(weights.begin(), weights.end(),
              out.weights.begin() + static_cast<std::ptrdiff_t>(row * weights.size()));
  };
  KVFOLD_RETURN_IF_ERROR(feed_with_attention(session, cache, out.tokens, layers, heads, keep));
  out.positions.assign(cache.rows().positions.end() - count, cache.rows().positions.end());
  return out;
}

Status add_attention_of(const Options& options, std::vector<Inspected>& caches) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string model, options.model.empty()
                                                       ? find_fetched_model(caches[0].model.fingerprint)
                                                       : resolve_model(options.model));
  if (model.empty())
    return Status::error(
        fmt::format("--query needs the model that made {}: '{}' ({}) is not in weights/cache; "
                    "name its file with --model",
                    caches[0].path, printable(caches[0].model.name), printable(caches[0].model.fingerprint)));
  OpenOptions open;
  open.session.cache_type = caches[0].cache.type();
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, open_session(model, open));
  for (Inspected& in : caches) {
    KVFOLD_ASSIGN_OR_RETURN(in.attention, attend(*session, options.query, in));
  }
  return {};
}

// ---- tables ----

std::vector<int32_t> positions_held(const KvCache& cache, int lane) {
  std::vector<int32_t> out;
  for (const KvSpan& span : cache.lanes().table(Part::kKey, lane).spans())
    for (int slot = span.slot; slot < span.slot + span.count; ++slot)
      out.push_back(cache.rows().positions[slot]);
  return out;
}

void print_lanes(const Inspected& in) {
  const CacheShape& shape = in.cache.shape();
  fmt::print("{}: {} rows of {} ({}), {} layers x {} KV heads x {}, {}, next position {}\n", in.path,
             in.cache.size(), one_line(in.model.name), one_line(in.model.architecture), shape.layers,
             shape.kv_heads, shape.head_dim, cache_type_name(in.cache.type()), in.cache.next_position());
  fmt::print(
      "layer head   rows | K norm   least largest exp(H)  90% | V norm   least largest exp(H)  90% | "
      "positions\n");
  const auto numbers = [](const LaneStatistics& s) {
    return fmt::format("{:>6.4g} {:>7.4g} {:>7.4g} {:>6.2f} {:>4}", s.mean_norm, s.least_norm, s.largest_norm,
                       s.effective_rank, s.rank_90);
  };
  for (int lane = 0; lane < shape.lanes(); ++lane)
    fmt::print("{:>5} {:>4} {:>6} | {} | {} | {}\n", lane / shape.kv_heads, lane % shape.kv_heads,
               in.keys[lane].rows, numbers(in.keys[lane]), numbers(in.values[lane]),
               position_runs(positions_held(in.cache, lane)));
}

// Mean over the lanes that hold each row, by slot; negative where none does.
std::vector<double> mean_norms(const Inspected& in, Part part) {
  const auto rows = static_cast<size_t>(in.cache.size());
  std::vector<double> sums(rows);
  std::vector<int> counts(rows);
  for (int lane = 0; lane < in.cache.shape().lanes(); ++lane) {
    const std::vector<double> norms = row_norms(in.cache.lanes(), part, lane, in.cache.size());
    for (size_t row = 0; row < rows; ++row) {
      if (norms[row] < 0) continue;
      sums[row] += norms[row];
      ++counts[row];
    }
  }
  for (size_t row = 0; row < rows; ++row) sums[row] = counts[row] == 0 ? -1 : sums[row] / counts[row];
  return sums;
}

std::string origin_text(const Rows& rows, int row) {
  const Origin& o = rows.origins[row];
  const std::string operations = operation_names(o.operations);
  return fmt::format("{} {}{}", one_line(rows.sources[o.source]), o.row,
                     operations.empty() ? "" : " " + operations);
}

void print_rows(const Inspected& in) {
  const std::vector<double> keys = mean_norms(in, Part::kKey);
  const std::vector<double> values = mean_norms(in, Part::kValue);
  fmt::print(
      "{}: rows, with norms that are means over lanes\n   row  position  token   K norm   V norm  from, and "
      "text\n",
      in.path);
  for (int row = 0; row < in.cache.size(); ++row)
    fmt::print("{:>6} {:>9} {:>6} {:>8.4g} {:>8.4g}  {}  {}\n", row, in.cache.rows().positions[row],
               in.cache.rows().tokens[row], keys[row], values[row], origin_text(in.cache.rows(), row),
               in.texts.empty() ? "" : fmt::format("'{}'", one_line(in.texts[row])));
}

nlohmann::ordered_json to_json(const LaneStatistics& s) {
  return {{"mean_norm", s.mean_norm},
          {"least_norm", s.least_norm},
          {"largest_norm", s.largest_norm},
          {"effective_rank", s.effective_rank},
          {"rank_90", s.rank_90}};
}

nlohmann::ordered_json to_json(const Inspected& in) {
  const CacheShape& shape = in.cache.shape();
  nlohmann::ordered_json lanes = nlohmann::ordered_json::array();
  for (int lane = 0; lane < shape.lanes(); ++lane)
    lanes.push_back({{"layer", lane / shape.kv_heads},
                     {"head", lane % shape.kv_heads},
                     {"positions", positions_held(in.cache, lane)},
                     {"k", to_json(in.keys[lane])},
                     {"v", to_json(in.values[lane])}});
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  const std::vector<double> keys = mean_norms(in, Part::kKey);
  const std::vector<double> values = mean_norms(in, Part::kValue);
  const auto norm = [](double x) { return x < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(x); };
  for (int row = 0; row < in.cache.size(); ++row)
    rows.push_back(
        {{"row", row},
         {"position", in.cache.rows().positions[row]},
         {"token", in.cache.rows().tokens[row]},
         {"text", in.texts.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(in.texts[row])},
         {"k_norm", norm(keys[row])},
         {"v_norm", norm(values[row])},
         {"from", origin_text(in.cache.rows(), row)}});
  return {{"file", in.path}, {"lanes", std::move(lanes)}, {"rows", std::move(rows)}};
}

// What a reader of the page should know of what is not on it.
std::vector<std::string> notes_on(const std::vector<Inspected>& caches) {
  std::vector<std::string> notes;
  for (const Inspected& in : caches)
    if (in.texts.empty())
      notes.push_back(fmt::format(
          "{}: no model with its tokenizer was found, so tokens are shown by number (--model names one).",
          in.path));
  if (caches.size() == 2 && caches[0].cache.shape() != caches[1].cache.shape())
    notes.emplace_back("The caches differ in layers, heads or head_dim: there is no difference to show.");
  if (const auto& attention = caches[0].attention;
      attention && attention->queries.size() < attention->tokens.size())
    notes.push_back(fmt::format("The attention of the last {} of the query's {} tokens is shown.",
                                attention->queries.size(), attention->tokens.size()));
  return notes;
}

Status run(const Options& options) {
  if (!options.query.empty() && options.html.empty())
    return Status::error("--query is for a page: expected --html OUT with it (see also 'kvfold attention')");
  std::vector<Inspected> caches;
  for (const std::string& path : options.caches) {
    KVFOLD_ASSIGN_OR_RETURN(Inspected in, open(path));
    KVFOLD_RETURN_IF_ERROR(add_texts(options.model, in));
    caches.push_back(std::move(in));
  }
  if (!options.query.empty()) KVFOLD_RETURN_IF_ERROR(add_attention_of(options, caches));
  if (!options.html.empty()) KVFOLD_RETURN_IF_ERROR(write_page(caches, notes_on(caches), options.html));
  if (options.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Inspected& in : caches) all.push_back(to_json(in));
    print_json({{"html", options.html}, {"caches", std::move(all)}});
    return {};
  }
  if (!options.html.empty()) fmt::print("{}: open it in a browser\n", options.html);
  for (const Inspected& in : caches) {
    if (options.rows) {
      print_rows(in);
    } else if (options.html.empty()) {
      print_lanes(in);
    }
  }
  return {};
}

}  // namespace

Action add_inspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("CACHE", options->caches, "a cache file, or two to see side by side")
      ->required()
      ->expected(1, 2);
  app.add_flag("--rows", options->rows, "rows with their tokens and norms instead of lanes");
  app.add_option(
      "--html", options->html,
      "write a page that opens offline: heat maps of norms, attention, spectra, and the difference of two");
  app.add_option("--query", options->query,
                 "a text to feed behind the rows: the page shows whom its tokens attend to");
  app.add_option(
      "--model", options->model,
      "the model, for tokens' text and --query (default: the one in weights/cache that made the cache)");
  app.add_flag("--json", options->json, "print lanes and rows as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvfold::cli
