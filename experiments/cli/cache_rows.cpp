// cache extract, insert, overwrite, erase, keep, truncate, shift, set-positions, concat: rows go elsewhere,
// and their vectors stay as they are.
#include <fmt/core.h>

#include <charconv>

#include "engine/printable.h"
#include "experiments/cli/cache_files.h"

namespace kvfold::cli {
namespace {

constexpr CacheInput kIn = {"IN", "a cache file"};
constexpr CacheInput kSlice = {"SLICE", "the cache file whose rows are put in"};
constexpr const char* kSelectHelp = ": \"layers=0-9,20 heads=* rows=3-12\"; what is not named is all of it";

Action declare_extract(CLI::App& app) {
  auto slice = std::make_shared<SliceOptions>();
  slice->declare(app, "IN");
  return cache_operation(app, {kIn}, [slice](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const KvSlice rows, slice->take(in.caches[0], in.model, in.paths[0]));
    return to_cache(rows);
  });
}

struct InsertOptions {
  SliceOptions slice;
  std::string at = "start";
  std::string positions = "follow";
};

Result<KvCache> run_insert(const InsertOptions& options, const OpenCaches& in) {
  const int rows = in.caches[0].size();
  int at = options.at == "start" ? 0 : options.at == "end" ? rows : -1;
  if (at < 0) {
    const char* end = options.at.data() + options.at.size();
    const auto [last, error] = std::from_chars(options.at.data(), end, at);
    if (error != std::errc() || last != end || at < 0 || at > rows)
      return Status::error(fmt::format("{}: --at {}: expected start, end or a slot in 0-{}", in.paths[0],
                                       printable(options.at), rows));
  }
  KVFOLD_ASSIGN_OR_RETURN(const InsertPositions positions, InsertPositions::parse(options.positions));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, options.slice.take(in.caches[1], in.model, in.paths[1]));
  return insert(in.caches[0], slice, at, positions);
}

Action declare_insert(CLI::App& app) {
  auto options = std::make_shared<InsertOptions>();
  options->slice.declare(app, "SLICE");
  app.add_option("--at", options->at, "the slot of IN before which they go: start, end or a number")
      ->capture_default_str();
  app.add_option("--positions", options->positions,
                 "the positions they take: follow, keep, overlap, gap:N or from:N")
      ->capture_default_str();
  return cache_operation(app, {kIn, kSlice},
                         [options](const OpenCaches& in) { return run_insert(*options, in); });
}

Action declare_overwrite(CLI::App& app) {
  struct Options {
    std::string select, rows;
  };
  auto options = std::make_shared<Options>();
  app.add_option("--rows", options->rows,
                 "the rows of IN that are replaced, as many as are selected: \"3-12\"")
      ->required();
  app.add_option("--select", options->select,
                 "which part of SLICE replaces them: \"layers=0-9,20 heads=* parts=k rows=3-12\"");
  return cache_operation(app, {kIn, kSlice}, [options](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<int> rows, rows_in(in, 0, options->rows));
    KVFOLD_ASSIGN_OR_RETURN(const Selection selection, select_in(in, 1, options->select));
    KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(in.caches[1], selection));
    return overwrite(in.caches[0], slice, rows);
  });
}

// erase and keep.
Action declare_selective(CLI::App& app, const char* what,
                         Result<KvCache> (*operation)(const KvCache&, const Selection&)) {
  auto select = std::make_shared<std::string>();
  app.add_option("--select", *select, std::string(what) + kSelectHelp)->required();
  return cache_operation(app, {kIn}, [select, operation](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const Selection selection, select_in(in, 0, *select));
    return operation(in.caches[0], selection);
  });
}
Action declare_erase(CLI::App& app) { return declare_selective(app, "what goes", erase); }
Action declare_keep(CLI::App& app) { return declare_selective(app, "what stays", keep); }

Action declare_truncate(CLI::App& app) {
  auto rows = std::make_shared<int>(0);
  app.add_option("--rows", *rows, "how many rows stay")->required();
  return cache_operation(app, {kIn}, [rows](const OpenCaches& in) { return truncate(in.caches[0], *rows); });
}

Action declare_shift(CLI::App& app) {
  struct Options {
    std::string rows = "*";
    int32_t delta = 0;
  };
  auto options = std::make_shared<Options>();
  app.add_option("--delta", options->delta, "what is added to their positions")->required();
  app.add_option("--rows", options->rows,
                 "the rows that move: \"3-12\"; with all of them, what is fed next moves too")
      ->capture_default_str();
  return cache_operation(app, {kIn}, [options](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<int> rows, rows_in(in, 0, options->rows));
    return shift(in.caches[0], rows, options->delta);
  });
}

// "0..9,20,-3": integers and ranges with both ends, in the rows' order.
Result<std::vector<int32_t>> parse_positions(const std::string& text, int rows) {
  std::vector<int32_t> out;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto refuse = [&](const std::string& why) {
    return Status::error(fmt::format("--positions {}: {}", printable(text), why));
  };
  const auto number = [&](int32_t& value) {
    const auto [next, error] = std::from_chars(at, end, value);
    at = next;
    return error == std::errc();
  };
  while (at != end || out.empty()) {
    int32_t first = 0;
    if (!number(first)) return refuse("expected integers and ranges such as 0..9,20");
    int32_t last = first;
    if (end - at > 2 && at[0] == '.' && at[1] == '.') {
      at += 2;
      if (!number(last) || last < first)
        return refuse(fmt::format("the range from {} is reversed or no range", first));
    }
    if (static_cast<int64_t>(last) - first >= rows)
      return refuse(fmt::format("more positions than the {} rows", rows));
    for (int64_t p = first; p <= last; ++p) out.push_back(static_cast<int32_t>(p));
    if (at == end) break;
    if (*at++ != ',' || at == end) return refuse("expected integers and ranges such as 0..9,20");
  }
  return out;
}

Action declare_set_positions(CLI::App& app) {
  auto text = std::make_shared<std::string>();
  app.add_option("--positions", *text, "one for every row, in their order: \"0..9,20,31\" (both ends)")
      ->required();
  return cache_operation(app, {kIn}, [text](const OpenCaches& in) -> Result<KvCache> {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<int32_t> positions,
                            parse_positions(*text, in.caches[0].size()));
    return set_positions(in.caches[0], positions);
  });
}

Action declare_concat(CLI::App& app) {
  return cache_operation(
      app, {{"IN", "cache files, in the order of their rows; positions stay"}},
      [](const OpenCaches& in) -> Result<KvCache> {
        std::vector<KvSlice> slices;
        for (const KvCache& cache : in.caches) {
          KVFOLD_ASSIGN_OR_RETURN(KvSlice all, extract(cache, Selection::all(cache.shape(), cache.size())));
          slices.push_back(std::move(all));
        }
        KVFOLD_ASSIGN_OR_RETURN(const KvSlice joined, concat(slices));
        return to_cache(joined);
      },
      true);
}

}  // namespace

std::vector<CacheCommand> row_commands() {
  return {{"extract", "rows of a cache as a cache of their own", declare_extract},
          {"insert", "rows of one cache put between those of another", declare_insert},
          {"overwrite", "rows of one cache in place of another's, in all lanes or some", declare_overwrite},
          {"erase", "a cache without some rows, in all lanes or some", declare_erase},
          {"keep", "a cache with some rows alone; what is fed next stays where it was", declare_keep},
          {"truncate", "the first rows of a cache", declare_truncate},
          {"shift", "rows moved to other positions by a distance", declare_shift},
          {"set-positions", "every row at a position of its own", declare_set_positions},
          {"concat", "rows of several caches one after another", declare_concat}};
}

}  // namespace kvfold::cli
