// The operations on caches. Each is pure: it returns a new cache or slice that shares pages with its inputs,
// and changes none of them. Rows are moved by editing page tables; only made-up vectors (noise, fill)
// allocate pages for rows, and then a shortage is an error that leaves everything as it was.
//
// Errors are one line that says what was asked and what exists.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/kv/cache.h"

namespace kvfold {

// The selected lanes and rows as a slice. Rows are numbered from 0 in slot order and keep their positions and
// origins. A lane that lacks a selected row lacks it in the slice too.
Result<KvSlice> extract(const KvCache& cache, const Selection& selection);

// The positions that inserted rows take, and what becomes of the rows behind them (those there, and those fed
// later). The slice's rows keep their distances to each other, except under `keep`, which keeps the positions
// themselves.
struct InsertPositions {
  enum class Kind {
    kFollow,   // behind the row before; the rows behind follow the slice
    kKeep,     // as in the source; what is fed later follows the highest position
    kOverlap,  // the positions that the rows behind have, or will get: those do not move
    kGap,   // as kFollow, with `value` positions left free before the slice (where rows precede it) and after
            // it
    kFrom,  // from position `value`; what is fed later follows the highest position
  };
  Kind kind = Kind::kFollow;
  int32_t value = 0;

  // "follow", "keep", "overlap", "gap:N" (N >= 0), "from:N".
  static Result<InsertPositions> parse(std::string_view text);
};

// The slice's rows at slots at .. at + size - 1 of a larger cache; rows from slot `at` on move behind them. A
// slice with no rows, or of no lanes, changes nothing. Errors: shapes or pools differ, `at` outside 0 ..
// size, a lane of the slice with K but not V or the reverse (see fill_missing).
Result<KvCache> insert(const KvCache& cache, const KvSlice& slice, int at, const InsertPositions& positions);

// Row i of the slice replaces the row at slot rows[i], in the lanes and parts that the slice has; the rest is
// untouched, positions included. Errors: shapes or pools differ, as many rows as the slice has are not named,
// a slot is out of range or not above the one before it, or a lane lacks the row that would be replaced.
Result<KvCache> overwrite(const KvCache& cache, const KvSlice& slice, std::span<const int> rows);

// Drops the selected rows from the selected lanes (K and V together, as attention needs both: a selection of
// one part is an error). A row that no lane holds any more is gone, and the rows behind it move up.
Result<KvCache> erase(const KvCache& cache, const Selection& selection);
// The first `size` rows. Errors: size outside 0 .. cache.size().
Result<KvCache> truncate(const KvCache& cache, int size);
// Only the selected rows of the selected lanes: erase of everything else.
Result<KvCache> keep(const KvCache& cache, const Selection& selection);

// Adds `delta` to the position of every row in `rows`, and to next_position() where that is all rows.
Result<KvCache> shift(const KvCache& cache, std::span<const int> rows, int32_t delta);
// Row i gets positions[i]; next_position() follows the highest. Errors: not one position a row.
Result<KvCache> set_positions(const KvCache& cache, std::span<const int32_t> positions);

// Vectors made up in place of a slice's: same lanes, parts and rows, same tokens and positions.
enum class NoiseKind {
  kUnit,      // N(0, 1)
  kMatched,   // random directions with each lane's mean and deviation, and each row's norm (per K and V)
  kChannel,   // gaussian with each lane's mean and covariance over channels
  kPermuted,  // the same vectors, rows in another order (the same order in every lane)
  kZero,
  kMean,  // each lane's mean row
};
Result<NoiseKind> parse_noise_kind(std::string_view text);
// The same (slice, kind, seed) gives the same bits. Errors: the pool is exhausted.
Result<KvSlice> noise(const KvSlice& like, NoiseKind kind, uint64_t seed);
// The cache with the selected vectors made up in place of those that are there: noise() of the extracted
// slice, put back where it was.
Result<KvCache> noise(const KvCache& cache, const Selection& selection, NoiseKind kind, uint64_t seed);

// The other half for lanes that have K alone or V alone: vectors of `source` (which has that half of those
// rows) made into noise of the given kind. With no kind: the source's own vectors. Errors: the source lacks
// them.
Result<KvSlice> fill_missing(const KvSlice& slice, const KvSlice& source, std::optional<NoiseKind> kind,
                             uint64_t seed);

// The slices' rows one after another, in the lanes and parts that each has; positions stay as they are.
// Errors: none given, shapes or pools differ.
Result<KvSlice> concat(std::span<const KvSlice> slices);

// ---- Arithmetic on vectors. Each works on the selected rows of the selected lanes and parts, as far as
// lanes
// ---- hold them, in f64 rounded to f32 and then to the pages' type; rows that are not selected keep their
// pages. Errors of each: a value that the pages cannot hold (lane, K or V, and the value are named).

// (1 - alpha) a + alpha b, row by row. Errors: shapes, pools or sizes differ; a lane holds a selected row in
// one of them alone.
Result<KvCache> mix(const KvCache& a, const KvCache& b, double alpha, const Selection& selection);

// What add() adds, to K and to V: each empty (nothing), [head_dim] (the same in every lane) or
// [layers, kv_heads, head_dim].
struct SteeringVectors {
  std::vector<float> keys, values;
};
// row + coefficient * vector (activation addition: Turner et al. 2023, arXiv:2308.10248, on the cache as in
// Belitsky et al. 2025, arXiv:2507.08799). Errors: vectors of another size.
Result<KvCache> add(const KvCache& cache, const SteeringVectors& vectors, double coefficient,
                    const Selection& selection);

// factor * row.
Result<KvCache> scale(const KvCache& cache, double factor, const Selection& selection);

// What norm match_norm() gives a row: that of the row at the same slot, or the mean over the lane's rows.
enum class NormTarget { kRow, kLaneMean };
// Each row scaled to a norm that `to` has in that lane and part; a zero row stays zero.
// Errors: shapes or pools differ; for kRow also sizes; `to` lacks a row or has none in that lane.
Result<KvCache> match_norm(const KvCache& cache, const KvCache& to, NormTarget target,
                           const Selection& selection);

// The slice as a cache of its own. Errors: a lane has K but not V, or the reverse.
Result<KvCache> to_cache(const KvSlice& slice);

}  // namespace kvfold
