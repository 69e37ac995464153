// What the `kvfold cache` commands that work on files share: caches opened together without their model, and
// operations from files to a file.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "experiments/cli/common.h"

namespace kvfold::cli {

// Caches of one model in one pool.
struct OpenCaches {
  CacheModelInfo model;
  std::shared_ptr<PagePool> pool;
  std::vector<std::string> paths;
  std::vector<KvCache> caches;
};
// The pool takes its type from the first file, and has room for the inputs and for results of their size.
// Errors: those of load_cache(); a file of another model, shape or page type than the first.
Result<OpenCaches> open_caches(const std::vector<std::string>& paths);

// The selection that `text` names in caches[which]; errors name the file.
Result<Selection> select_in(const OpenCaches& in, size_t which, const std::string& text);
// As above, of row ranges alone ("3-12"); "*" is all.
Result<std::vector<int>> rows_in(const OpenCaches& in, size_t which, const std::string& text);

// --select, and --fill with its --seed for the half that a selection of K or V alone lacks.
struct SliceOptions {
  std::string select;
  std::string fill;
  uint64_t seed = 0;

  void declare(CLI::App& app, const std::string& of);
  // The selected rows of a cache of that model, with both halves. Errors name `path`, the cache's file: one
  // half and no --fill; a --fill file that has not as many rows, or is of another model.
  Result<KvSlice> take(const KvCache& cache, const CacheModelInfo& model, const std::string& path) const;
};

// What an operation does with its opened inputs.
using CacheOperation = std::function<Result<KvCache>(const OpenCaches& in)>;
// A command `NAME inputs... --out OUT [--json]`: declares the inputs (name and what it is), opens them, runs
// the operation and saves its result. With `many`, the last input may be given any number of times.
struct CacheInput {
  const char* name;
  const char* what;
};
Action cache_operation(CLI::App& app, const std::vector<CacheInput>& inputs, CacheOperation operation,
                       bool many = false);

// Positions as runs: "0 to 11, 40 to 52"; "none".
std::string position_runs(const std::vector<int32_t>& positions);

// The last step of a command: saves, and says so.
Status write_cache(const KvCache& cache, const CacheModelInfo& model, const std::string& out, bool json);

// Commands by subject; each adds itself to `cache`.
struct CacheCommand {
  const char* name;
  const char* what;
  Action (*declare)(CLI::App& app);
};
std::vector<CacheCommand> row_commands();       // move rows: extract, insert, erase, ...
std::vector<CacheCommand> vector_commands();    // compute vectors: mix, add, noise, ...
std::vector<CacheCommand> look_commands();      // info, compare, statistics
std::vector<CacheCommand> exchange_commands();  // export, import
std::vector<CacheCommand> project_commands();   // project

}  // namespace kvfold::cli
