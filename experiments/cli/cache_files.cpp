#include "experiments/cli/cache_files.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>

#include "engine/printable.h"

namespace kvfold::cli {
namespace {

// Bytes of one cache whose lanes all hold `rows` rows. The header's numbers are anybody's: what no address
// space holds stays a large number.
size_t most_bytes(const CacheFileInfo& info) {
  constexpr size_t kMost = size_t{1} << 56;
  size_t pages = 0;
  size_t bytes = 0;
  const size_t lane_pages = static_cast<size_t>(info.rows) / kPageRows + 2;
  if (__builtin_mul_overflow(size_t{2} * info.shape.lanes(), lane_pages, &pages) ||
      __builtin_mul_overflow(pages, kv_page_bytes(info.type, info.shape.head_dim), &bytes))
    return kMost;
  return std::min(bytes, kMost);
}

// Rows that another file calls "fed" were fed there, not here.
KvCache with_named_source(const KvCache& cache, const std::string& path) {
  Rows named = cache.rows();
  for (std::string& source : named.sources)
    if (source == "fed") source = fmt::format("fed ({})", std::filesystem::path(path).filename().string());
  auto rows = std::make_shared<Rows>();
  rows->append(named, 0, named.size());
  return KvCache(cache.lanes(), std::move(rows), cache.next_position());
}

// Errors name the cache's file.
Result<Selection> parse_selection(const KvCache& cache, const std::string& text, const std::string& path) {
  Result<Selection> selection = Selection::parse(text, cache.shape(), cache.size());
  if (!selection.ok()) return selection.status().with_prefix(path + ": ");
  return selection;
}

}  // namespace

Result<OpenCaches> open_caches(const std::vector<std::string>& paths) {
  // Inputs, and room for what operations make of them: no operation makes more than all its inputs hold
  // twice.
  constexpr size_t kRoom = 4;
  size_t bytes = 0;
  std::optional<CacheFileInfo> first;
  for (const std::string& path : paths) {
    KVFOLD_ASSIGN_OR_RETURN(CacheFileInfo info, read_cache_info(path));
    bytes += kRoom * most_bytes(info);
    if (!first) first = std::move(info);
  }
  OpenCaches out;
  out.paths = paths;
  out.model = first->model;
  KVFOLD_ASSIGN_OR_RETURN(out.pool, PagePool::create(first->type, first->shape.head_dim, bytes));
  for (const std::string& path : paths) {
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache, load_cache(path, first->model, first->shape, out.pool));
    out.caches.push_back(out.caches.empty() ? std::move(cache) : with_named_source(cache, path));
  }
  return out;
}

Result<Selection> select_in(const OpenCaches& in, size_t which, const std::string& text) {
  return parse_selection(in.caches[which], text, in.paths[which]);
}

Result<std::vector<int>> rows_in(const OpenCaches& in, size_t which, const std::string& text) {
  Result<std::vector<int>> rows = parse_ranges(text, "rows", in.caches[which].size());
  if (!rows.ok()) return rows.status().with_prefix(in.paths[which] + ": ");
  return rows;
}

void SliceOptions::declare(CLI::App& app, const std::string& of) {
  app.add_option("--select", select, "which part of " + of + ": \"layers=0-9,20 heads=* parts=k rows=3-12\"");
  app.add_option(
      "--fill", fill,
      "the other half where parts=k or parts=v: zero, noise (matched), mean, unit, channel, permuted, or "
      "a cache file with as many rows as are selected");
  app.add_option("--seed", seed, "seed of made-up vectors")->capture_default_str();
}

Result<KvSlice> SliceOptions::take(const KvCache& cache, const CacheModelInfo& model,
                                   const std::string& path) const {
  KVFOLD_ASSIGN_OR_RETURN(const Selection selection, parse_selection(cache, select, path));
  KVFOLD_ASSIGN_OR_RETURN(KvSlice slice, extract(cache, selection));
  if (selection.keys && selection.values) return slice;
  if (fill.empty())
    return Status::error(
        "--select with one of K and V needs --fill for the other: zero, noise, mean or a cache file");
  Selection both = selection;
  both.keys = both.values = true;
  const Result<NoiseKind> kind = parse_noise_kind(fill == "noise" ? "matched" : fill);
  if (kind.ok()) {
    KVFOLD_ASSIGN_OR_RETURN(const KvSlice natural, extract(cache, both));
    return fill_missing(slice, natural, *kind, seed);
  }
  std::error_code error;
  if (!std::filesystem::exists(fill, error))
    return Status::error(fmt::format(
        "--fill {}: expected zero, noise, mean, unit, channel, permuted or a cache file", printable(fill)));
  KVFOLD_ASSIGN_OR_RETURN(const KvCache other, load_cache(fill, model, cache.shape(), cache.pool()));
  if (other.size() != slice.size())
    return Status::error(fmt::format("--fill {}: found {} rows, expected {}, as many as are selected", fill,
                                     other.size(), slice.size()));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice natural, extract(other, Selection::all(other.shape(), other.size())));
  return fill_missing(slice, natural, std::nullopt, seed);
}

Status write_cache(const KvCache& cache, const CacheModelInfo& model, const std::string& out, bool json) {
  KVFOLD_RETURN_IF_ERROR(save_cache(cache, model, out));
  if (json) {
    print_json({{"out", out},
                {"rows", cache.size()},
                {"next_position", cache.next_position()},
                {"rows_copied", cache.pool()->rows_copied()}});
  } else {
    fmt::print("{}: {} rows, next position {}\n", out, cache.size(), cache.next_position());
  }
  return {};
}

Action cache_operation(CLI::App& app, const std::vector<CacheInput>& inputs, CacheOperation operation,
                       bool many) {
  struct Options {
    std::vector<std::string> one;  // by input
    std::vector<std::string> rest;
    std::string out;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  options->one.resize(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool last = i + 1 == inputs.size();
    if (many && last) {
      app.add_option(inputs[i].name, options->rest, inputs[i].what)->required();
    } else {
      app.add_option(inputs[i].name, options->one[i], inputs[i].what)->required();
    }
  }
  app.add_option("--out", options->out, "the cache file to write")->required();
  app.add_flag("--json", options->json, "print out, rows, next_position and rows_copied as JSON");
  return [options, operation = std::move(operation), many]() -> Status {
    std::vector<std::string> paths = options->one;
    if (many) {
      paths.pop_back();
      paths.insert(paths.end(), options->rest.begin(), options->rest.end());
    }
    KVFOLD_ASSIGN_OR_RETURN(const OpenCaches in, open_caches(paths));
    KVFOLD_ASSIGN_OR_RETURN(const KvCache result, operation(in));
    return write_cache(result, in.model, options->out, options->json);
  };
}

std::string position_runs(const std::vector<int32_t>& positions) {
  std::string out;
  for (size_t i = 0; i < positions.size();) {
    size_t j = i + 1;
    while (j < positions.size() && positions[j] == positions[j - 1] + 1) ++j;
    if (!out.empty()) out += ", ";
    out += j - i == 1 ? fmt::format("{}", positions[i])
                      : fmt::format("{} to {}", positions[i], positions[j - 1]);
    i = j;
  }
  return out.empty() ? "none" : out;
}

}  // namespace kvfold::cli
