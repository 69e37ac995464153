// The page of kvfold inspect: data as JSON, and the files of experiments/page put around it.
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/file.h"
#include "experiments/cli/inspect.h"

namespace kvfold::cli {
namespace {

using nlohmann::ordered_json;

// RFC 4648, of little-endian f32.
std::string base64(const std::vector<float>& values) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::span<const std::byte> bytes = std::as_bytes(std::span(values));
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - i);
    uint32_t three = 0;
    for (size_t j = 0; j < 3; ++j) three = three << 8 | (j < n ? static_cast<uint32_t>(bytes[i + j]) : 0U);
    for (size_t digit = 0; digit < 4; ++digit)
      out += digit <= n ? kDigits[three >> (18 - 6 * digit) & 63U] : '=';
  }
  return out;
}

ordered_json describe_part(const Inspected& in, Part part) {
  const CacheShape& shape = in.cache.shape();
  const std::vector<LaneStatistics>& lanes = part == Part::kKey ? in.keys : in.values;
  std::vector<float> norms;
  std::vector<float> spectra(static_cast<size_t>(shape.lanes()) * shape.head_dim);
  ordered_json out = {{"held", {}},         {"mean_norm", {}},      {"least_norm", {}},
                      {"largest_norm", {}}, {"effective_rank", {}}, {"rank_90", {}}};
  for (int lane = 0; lane < shape.lanes(); ++lane) {
    const LaneStatistics& s = lanes[lane];
    for (const double x : row_norms(in.cache.lanes(), part, lane, in.cache.size()))
      norms.push_back(static_cast<float>(x));
    std::copy(s.singular_values.begin(), s.singular_values.end(),
              spectra.begin() + static_cast<std::ptrdiff_t>(lane) * shape.head_dim);
    out["held"].push_back(s.rows);
    out["mean_norm"].push_back(s.mean_norm);
    out["least_norm"].push_back(s.least_norm);
    out["largest_norm"].push_back(s.largest_norm);
    out["effective_rank"].push_back(s.effective_rank);
    out["rank_90"].push_back(s.rank_90);
  }
  out["norms"] = base64(norms);
  out["spectra"] = base64(spectra);
  return out;
}

ordered_json describe_attention(const QueryAttention& attention) {
  return {
      {"tokens", attention.tokens},          {"texts", attention.texts}, {"positions", attention.positions},
      {"queries", attention.queries},        {"heads", attention.heads}, {"rows", attention.rows},
      {"weights", base64(attention.weights)}};
}

ordered_json describe(const Inspected& in) {
  const Rows& rows = in.cache.rows();
  ordered_json origins = ordered_json::array();
  for (const Origin& o : rows.origins) origins.push_back({o.source, o.row, operation_names(o.operations)});
  return {{"file", in.path},
          {"model",
           {{"name", in.model.name},
            {"architecture", in.model.architecture},
            {"fingerprint", in.model.fingerprint}}},
          {"dtype", cache_type_name(in.cache.type())},
          {"layers", in.cache.shape().layers},
          {"kv_heads", in.cache.shape().kv_heads},
          {"head_dim", in.cache.shape().head_dim},
          {"rows", in.cache.size()},
          {"next_position", in.cache.next_position()},
          {"tokens", rows.tokens},
          {"texts", in.texts.empty() ? ordered_json() : ordered_json(in.texts)},
          {"positions", rows.positions},
          {"sources", rows.sources},
          {"origins", std::move(origins)},
          {"k", describe_part(in, Part::kKey)},
          {"v", describe_part(in, Part::kValue)},
          {"attention", in.attention ? describe_attention(*in.attention) : ordered_json()}};
}

// |a - b| by lane and slot; negative where it was not compared.
std::string distances(const KvCache& a, const KvCache& b, Part part) {
  std::vector<float> out;
  for (int lane = 0; lane < a.shape().lanes(); ++lane)
    for (const double x : lane_distance(a, b, part, lane).by_slot) out.push_back(static_cast<float>(x));
  return base64(out);
}

std::string replace_all(std::string text, std::string_view what, std::string_view with) {
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size()))
    text.replace(at, what.size(), with);
  return text;
}

// The JSON may stand in a script element: nothing in it can end that.
std::string script_text(const ordered_json& json) {
  return replace_all(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace), "<", "\\u003c");
}

std::string title_text(const std::string& path) {
  const std::string name = std::filesystem::path(path).filename().string();
  return replace_all(replace_all(name, "&", "&amp;"), "<", "&lt;");
}

}  // namespace

Status write_page(const std::vector<Inspected>& caches, const std::vector<std::string>& notes,
                  const std::string& out) {
  const std::string folder = KVFOLD_SOURCE_DIR "/experiments/page/";
  std::error_code error;
  if (!std::filesystem::exists(folder + "plotly.min.js", error))
    return Status::error(fmt::format(
        "{}plotly.min.js: the script that draws pages was not fetched yet; 'make page-script' fetches it",
        folder));
  KVFOLD_ASSIGN_OR_RETURN(const std::string plotly, read_text_file(folder + "plotly.min.js"));
  KVFOLD_ASSIGN_OR_RETURN(const std::string look, read_text_file(folder + "page.css"));
  KVFOLD_ASSIGN_OR_RETURN(const std::string code, read_text_file(folder + "inspect.js"));

  ordered_json data = {{"notes", notes}, {"caches", ordered_json::array()}, {"distances", nullptr}};
  std::string title = "kvfold inspect";
  for (const Inspected& cache : caches) {
    data["caches"].push_back(describe(cache));
    title.append(" ").append(title_text(cache.path));
  }
  if (caches.size() == 2 && caches[0].cache.shape() == caches[1].cache.shape())
    data["distances"] = {{"k", distances(caches[0].cache, caches[1].cache, Part::kKey)},
                         {"v", distances(caches[0].cache, caches[1].cache, Part::kValue)}};

  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(out));
  KVFOLD_RETURN_IF_ERROR(
      file.write(fmt::format("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                             "<title>{}</title>\n<style>\n{}</style>\n<script>\n",
                             title, look)));
  KVFOLD_RETURN_IF_ERROR(file.write(plotly));
  KVFOLD_RETURN_IF_ERROR(file.write(std::string(
      "\n</script>\n</head>\n<body>\n<main></main>\n<script type=\"application/json\" id=\"data\">\n")));
  KVFOLD_RETURN_IF_ERROR(file.write(script_text(data)));
  KVFOLD_RETURN_IF_ERROR(
      file.write(fmt::format("\n</script>\n<script>\n{}</script>\n</body>\n</html>\n", code)));
  return file.commit();
}

}  // namespace kvfold::cli
