// The paged KV cache: a value made of lanes of pages, with a position and an origin for every row.
//
// A cache owns no rows of its own that another could not share: copying one (fork) shares every page, and
// every operation of ops.h makes a new cache and leaves its inputs as they were. What differs between two
// caches is copied when it is written.
//
// Slot order decides who sees whom: a token fed to a cache attends to every row at a lower slot. The position
// of a row is RoPE's alone, and may repeat, leave gaps or run backwards. Keys are stored before RoPE, so
// changing a position edits an integer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/kv/page_table.h"
#include "engine/kv/selection.h"
#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

// Operations that leave a mark on the rows they change: bits of Origin::operations.
enum class Operation : uint32_t {
  kShift = 1,        // set_positions, shift, and insert where it moved positions
  kOverwrite = 2,    // some or all lanes of the row were replaced
  kErase = 4,        // some lanes lost the row
  kFill = 8,         // half of the row (K or V) was made up
  kNoise = 16,       // made from noise
  kMix = 32,         // interpolated with another cache's row
  kAdd = 64,         // a vector was added
  kScale = 128,      // multiplied: scale, match_norm
  kRecompute = 256,  // made again by the model over another context
  kProject = 512,    // made from another model's rows
};
// The names of the set bits, "shift+overwrite"; "" for none. And back, for cache files; unknown names are
// ignored.
std::string operation_names(uint32_t operations);
uint32_t parse_operation_names(std::string_view names);

// Where a row came from.
struct Origin {
  int32_t source = 0;       // index into Rows::sources
  int32_t row = 0;          // row in that source
  uint32_t operations = 0;  // what was done to it since
  bool operator==(const Origin&) const = default;
};

// What the magnitude of a position may be: far enough from overflow that any two can be added.
inline constexpr int32_t kMostPosition = 1 << 30;

// What is known of each row besides its vectors; index is the slot.
struct Rows {
  std::vector<TokenId> tokens;
  std::vector<int32_t> positions;
  std::vector<Origin> origins;
  std::vector<std::string> sources = {"fed"};  // source 0: rows that a model computed here

  int size() const { return static_cast<int>(tokens.size()); }
  void append(const Rows& from, int begin, int end);
  // The index of `name` among the sources, added if new.
  int32_t source_index(const std::string& name);
};

// Lanes of K and V pages: what a cache and a slice have in common.
class KvLanes {
 public:
  // Lanes without rows. REQUIRES: pool->head_dim() == shape.head_dim.
  KvLanes(std::shared_ptr<PagePool> pool, const CacheShape& shape);

  const std::shared_ptr<PagePool>& pool() const { return pool_; }
  const CacheShape& shape() const { return shape_; }
  const PageTable& table(Part part, int lane) const { return *tables_[index(part, lane)]; }
  // For writing: forked first if another cache or slice shares it.
  PageTable& mutable_table(Part part, int lane);
  bool shares_table(Part part, int lane) const { return tables_[index(part, lane)].use_count() > 1; }
  // The same table as `from` has, shared until either writes.
  void share(Part part, int lane, const KvLanes& from, int from_lane) {
    tables_[index(part, lane)] = from.tables_[from.index(part, from_lane)];
  }
  void replace(Part part, int lane, std::shared_ptr<PageTable> table) {
    tables_[index(part, lane)] = std::move(table);
  }
  KvLaneView lane_view(int lane) const;

 private:
  size_t index(Part part, int lane) const {
    return static_cast<size_t>(part == Part::kKey ? 0 : shape_.lanes()) + lane;
  }
  std::shared_ptr<PagePool> pool_;
  CacheShape shape_;
  std::vector<std::shared_ptr<PageTable>> tables_;  // [2][lanes]
};

// Leaves the operation's mark on row slots[i] of `rows` where some lane of `changed` holds row i, K or V.
void mark_held(Rows& rows, std::span<const int> slots, const KvLanes& changed, Operation operation);

class KvCache {
 public:
  // An empty cache. REQUIRES: as KvLanes.
  KvCache(std::shared_ptr<PagePool> pool, const CacheShape& shape);
  // Assembles a cache; used by operations. REQUIRES: K and V of every lane hold the same slots, all below
  // rows.size().
  KvCache(KvLanes lanes, std::shared_ptr<Rows> rows, int32_t next_position);

  // Another cache with the same content; O(lanes), no page is copied.
  KvCache fork() const { return *this; }

  const CacheShape& shape() const { return lanes_.shape(); }
  const std::shared_ptr<PagePool>& pool() const { return lanes_.pool(); }
  CacheType type() const { return pool()->type(); }
  int size() const { return rows_->size(); }  // rows
  const Rows& rows() const { return *rows_; }
  const KvLanes& lanes() const { return lanes_; }
  // The position that the next fed token takes.
  int32_t next_position() const { return next_position_; }
  void set_next_position(int32_t position) { next_position_ = position; }

  // Makes room for `tokens` behind the last row, at positions that follow next_position(); their vectors are
  // written by the forward pass through row_place(). Errors: the pool is exhausted, positions go beyond their
  // range; the cache is then as it was.
  Status grow(std::span<const TokenId> tokens);
  // Undoes grow(): drops the rows from slot `size` on. REQUIRES: they are all from the last grow().
  void shrink(int size);
  // Where the vectors of the row at `slot` lie. REQUIRES: the lane holds the slot; for writing: it was just
  // grown.
  PageTable::RowPlace row_place(Part part, int lane, int slot) const {
    return lanes_.table(part, lane).place(slot);
  }
  // One row of one lane as f32 [head_dim]. REQUIRES: the lane holds the slot.
  void load(Part part, int layer, int head, int slot, float* out) const {
    lanes_.table(part, shape().lane(layer, head)).load(part, slot, out);
  }

 private:
  KvLanes lanes_;
  std::shared_ptr<Rows> rows_;  // shared between forks until one is written
  int32_t next_position_ = 0;
};

// Rows cut out of a cache: some lanes, K or V or both, sharing the cache's pages. Rows are numbered from 0.
struct KvSlice {
  KvLanes lanes;
  std::shared_ptr<const Rows> rows;
  int size() const { return rows->size(); }
  const CacheShape& shape() const { return lanes.shape(); }
};

}  // namespace kvfold
