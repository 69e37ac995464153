#include "engine/kv/cache.h"

#include <algorithm>
#include <array>
#include <utility>

namespace kvfold {
namespace {

constexpr std::array<std::pair<Operation, std::string_view>, 10> kOperationNames = {{
    {Operation::kShift, "shift"},
    {Operation::kOverwrite, "overwrite"},
    {Operation::kErase, "erase"},
    {Operation::kFill, "fill"},
    {Operation::kNoise, "noise"},
    {Operation::kMix, "mix"},
    {Operation::kAdd, "add"},
    {Operation::kScale, "scale"},
    {Operation::kRecompute, "recompute"},
    {Operation::kProject, "project"},
}};

}  // namespace

std::string operation_names(uint32_t operations) {
  std::string out;
  for (const auto& [operation, name] : kOperationNames) {
    if ((operations & static_cast<uint32_t>(operation)) == 0) continue;
    if (!out.empty()) out += '+';
    out += name;
  }
  return out;
}

uint32_t parse_operation_names(std::string_view names) {
  uint32_t out = 0;
  while (!names.empty()) {
    const std::string_view word = names.substr(0, names.find('+'));
    names.remove_prefix(std::min(names.size(), word.size() + 1));
    for (const auto& [operation, name] : kOperationNames)
      if (name == word) out |= static_cast<uint32_t>(operation);
  }
  return out;
}

int32_t Rows::source_index(const std::string& name) {
  const auto at = std::find(sources.begin(), sources.end(), name);
  if (at != sources.end()) return static_cast<int32_t>(at - sources.begin());
  sources.push_back(name);
  return static_cast<int32_t>(sources.size()) - 1;
}

void Rows::append(const Rows& from, int begin, int end) {
  tokens.insert(tokens.end(), from.tokens.begin() + begin, from.tokens.begin() + end);
  positions.insert(positions.end(), from.positions.begin() + begin, from.positions.begin() + end);
  for (int i = begin; i < end; ++i) {
    Origin origin = from.origins[i];
    origin.source = source_index(from.sources[origin.source]);
    origins.push_back(origin);
  }
}

KvLanes::KvLanes(std::shared_ptr<PagePool> pool, const CacheShape& shape)
    : pool_(std::move(pool)), shape_(shape) {
  KVFOLD_CHECK(pool_->head_dim() == shape.head_dim);
  const auto none = std::make_shared<PageTable>(pool_);
  tables_.assign(static_cast<size_t>(2) * shape.lanes(), none);
}

PageTable& KvLanes::mutable_table(Part part, int lane) {
  std::shared_ptr<PageTable>& table = tables_[index(part, lane)];
  if (table.use_count() > 1) table = std::make_shared<PageTable>(*table);
  return *table;
}

KvLaneView KvLanes::lane_view(int lane) const {
  const auto keys = table(Part::kKey, lane).spans();
  const auto values = table(Part::kValue, lane).spans();
  return {keys.data(), values.data(), static_cast<int>(keys.size()), static_cast<int>(values.size())};
}

void mark_held(Rows& rows, std::span<const int> slots, const KvLanes& changed, Operation operation) {
  std::vector<bool> held(slots.size());
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < changed.shape().lanes(); ++lane)
      for (const KvSpan& span : changed.table(part, lane).spans())
        std::fill_n(held.begin() + span.slot, span.count, true);
  for (size_t i = 0; i < slots.size(); ++i)
    if (held[i]) rows.origins[slots[i]].operations |= static_cast<uint32_t>(operation);
}

KvCache::KvCache(std::shared_ptr<PagePool> pool, const CacheShape& shape)
    : lanes_(std::move(pool), shape), rows_(std::make_shared<Rows>()) {}

KvCache::KvCache(KvLanes lanes, std::shared_ptr<Rows> rows, int32_t next_position)
    : lanes_(std::move(lanes)), rows_(std::move(rows)), next_position_(next_position) {}

Status KvCache::grow(std::span<const TokenId> tokens) {
  const int lane_count = shape().lanes();
  const auto count = static_cast<int>(tokens.size());
  constexpr std::array kParts = {Part::kKey, Part::kValue};
  size_t pages = 0;
  for (const Part part : kParts)
    for (int lane = 0; lane < lane_count; ++lane)
      pages += lanes_.table(part, lane).pages_to_extend(count, lanes_.shares_table(part, lane));
  KVFOLD_RETURN_IF_ERROR(pool()->require(pages));
  if (static_cast<int64_t>(next_position_) + count > kMostPosition)
    return Status::error("the cache's positions would go beyond what they may be");

  if (rows_.use_count() > 1) rows_ = std::make_shared<Rows>(*rows_);
  const int first = size();
  const int32_t fed = rows_->source_index("fed");
  for (int i = 0; i < count; ++i) {
    rows_->tokens.push_back(tokens[i]);
    rows_->positions.push_back(next_position_++);
    rows_->origins.push_back({fed, first + i, 0});
  }
  if (count == 0) return {};
  std::vector<RowCopy> copies;
  for (const Part part : kParts)
    for (int lane = 0; lane < lane_count; ++lane) {
      PageTable& table = lanes_.mutable_table(part, lane);
      table.own_last_page(part, copies);
      table.extend_rows(first, count);
    }
  pool()->copy_rows(copies);
  return {};
}

void KvCache::shrink(int size) {
  const int dropped = this->size() - size;
  if (dropped == 0) return;
  Rows kept;
  kept.append(*rows_, 0, size);
  kept.sources = rows_->sources;
  rows_ = std::make_shared<Rows>(std::move(kept));
  next_position_ -= dropped;
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < shape().lanes(); ++lane) {
      auto table = std::make_shared<PageTable>(pool());
      table->append(lanes_.table(part, lane), 0, size, 0);
      lanes_.replace(part, lane, std::move(table));
    }
}

}  // namespace kvfold
