#include "engine/kv/page_table.h"

#include <algorithm>

namespace kvfold {

PageTable::PageTable(const PageTable& other) : pool_(other.pool_), spans_(other.spans_), rows_(other.rows_) {
  for (const KvSpan& span : spans_) pool_->retain(span.page);
}

PageTable::~PageTable() {
  for (const KvSpan& span : spans_) pool_->release(span.page);
}

const KvSpan* PageTable::find(int slot) const {
  auto after = std::upper_bound(spans_.begin(), spans_.end(), slot,
                                [](int value, const KvSpan& span) { return value < span.slot; });
  if (after == spans_.begin()) return nullptr;
  const KvSpan& span = *--after;
  return slot < span.slot + span.count ? &span : nullptr;
}

// Counted from the back: a token that is being decoded stands behind all rows.
int PageTable::rows_before(int slot) const {
  int rows = rows_;
  for (auto span = spans_.rbegin(); span != spans_.rend() && span->slot + span->count > slot; ++span)
    rows -= std::min<int>(span->count, span->slot + span->count - slot);
  return rows;
}

bool PageTable::holds_same_slots(const PageTable& other) const {
  if (rows_ != other.rows_) return false;
  auto b = other.spans_.begin();
  int done_b = 0;  // rows of *b that were compared
  for (const KvSpan& a : spans_)
    for (int done_a = 0; done_a < a.count;) {
      if (a.slot + done_a != b->slot + done_b) return false;
      const int n = std::min(a.count - done_a, b->count - done_b);
      done_a += n;
      done_b += n;
      if (done_b < b->count) continue;
      ++b;
      done_b = 0;
    }
  return true;
}

void PageTable::append(const PageTable& from, int begin, int end, int delta) {
  KVFOLD_CHECK(pool_ == from.pool_);
  if (begin >= end) return;  // within a span that would be a span of no rows, which holds its page
  auto first = std::partition_point(from.spans_.begin(), from.spans_.end(),
                                    [&](const KvSpan& span) { return span.slot + span.count <= begin; });
  for (; first != from.spans_.end() && first->slot < end; ++first) {
    KvSpan span = *first;
    const int skip = std::max(0, begin - span.slot);
    const int count = std::min(span.slot + span.count, end) - span.slot - skip;
    span.first = static_cast<uint16_t>(span.first + skip);
    span.count = static_cast<uint16_t>(count);
    span.slot += skip + delta;
    rows_ += count;
    KvSpan* last = spans_.empty() ? nullptr : &spans_.back();
    KVFOLD_CHECK(last == nullptr || last->slot + last->count <= span.slot);
    if (last != nullptr && last->page == span.page && last->first + last->count == span.first &&
        last->slot + last->count == span.slot) {
      last->count = static_cast<uint16_t>(last->count + count);
      continue;
    }
    spans_.push_back(span);  // which may throw, so before the page is counted
    pool_->retain(span.page);
  }
}

// Nobody else holds the last page, and it has rows left behind our last one. Rows of our own that were moved
// before it may stand there too.
bool PageTable::last_page_is_open() const {
  if (spans_.empty()) return false;
  const KvSpan& last = spans_.back();
  const int end = last.first + last.count;
  uint32_t own = 0;
  for (auto at = spans_.rbegin();
       at != spans_.rend() && at->page == last.page && at->first + at->count <= end; ++at)
    ++own;
  return end < kPageRows && pool_->references(last.page) == own;
}

size_t PageTable::pages_to_extend(int rows, bool forked) const {
  if (rows == 0) return 0;
  int room = 0;
  if (!spans_.empty()) {
    const KvSpan& last = spans_.back();
    const bool open = !forked && last_page_is_open();
    const int behind = kPageRows - last.first - last.count;
    // The last rows of a page that others write behind, or may, move to a new page first.
    if (!open && behind > 0) rows += last.count;
    if (open) room = behind;
  }
  return rows <= room ? 0 : static_cast<size_t>((rows - room + kPageRows - 1) / kPageRows);
}

void PageTable::own_last_page(Part part, std::vector<RowCopy>& copies) {
  if (spans_.empty() || last_page_is_open()) return;
  KvSpan& last = spans_.back();
  if (last.first + last.count == kPageRows) return;
  copies.push_back(
      {last.page, 0, part, static_cast<uint8_t>(last.first), 0, static_cast<uint8_t>(last.count)});
  copies.back().to = pool_->allocate();
  pool_->release(last.page);
  last.page = copies.back().to;
  last.first = 0;
}

PageTable::RowPlace PageTable::extend(int slot) {
  KVFOLD_CHECK(spans_.empty() || spans_.back().slot + spans_.back().count <= slot);
  if (!last_page_is_open()) {
    KVFOLD_CHECK(spans_.empty() || spans_.back().first + spans_.back().count == kPageRows);
    const PageId page = pool_->allocate();
    try {
      spans_.push_back(KvSpan{page, 0, 0, slot});
    } catch (...) {
      pool_->release(page);
      throw;
    }
  }
  KvSpan& last = spans_.back();
  const RowPlace place{last.page, last.first + last.count};
  if (last.slot + last.count == slot) {
    ++last.count;
  } else {
    // The lane lacks the slots between: the same page, another span.
    spans_.push_back(KvSpan{place.page, static_cast<uint16_t>(place.row), 1, slot});
    pool_->retain(place.page);
  }
  ++rows_;
  return place;
}

void PageTable::extend_rows(int slot, int count) {
  for (const int end = slot + count; slot < end;) {
    extend(slot);
    KvSpan& last = spans_.back();
    const int more = std::min(end - slot - 1, kPageRows - last.first - last.count);
    last.count = static_cast<uint16_t>(last.count + more);
    rows_ += more;
    slot += 1 + more;
  }
}

PageTable::RowPlace PageTable::place(int slot) const {
  const KvSpan* span = find(slot);
  KVFOLD_CHECK(span != nullptr);
  return {span->page, span->first + slot - span->slot};
}

void PageTable::load(Part part, int slot, float* out) const {
  const RowPlace at = place(slot);
  kv_load_row(pool_->type(), part, pool_->head_dim(), pool_->read(at.page), at.row, out);
}

std::shared_ptr<PageTable> splice(const PageTable& old, const PageTable& with, std::span<const int> slots) {
  auto table = std::make_shared<PageTable>(old.pool());
  int next = 0;
  for (size_t i = 0; i < slots.size();) {
    // A run of consecutive slots goes over in one piece.
    size_t end = i + 1;
    while (end < slots.size() && slots[end] - slots[i] == static_cast<int>(end - i)) ++end;
    const auto first = static_cast<int>(i);
    const auto last = static_cast<int>(end);
    if (with.rows_before(last) - with.rows_before(first) == last - first) {
      table->append(old, next, slots[i], 0);
      table->append(with, first, last, slots[i] - first);
      next = slots[i] + last - first;
    } else {
      for (int r = first; r < last; ++r) {
        if (!with.holds(r)) continue;
        table->append(old, next, slots[r], 0);
        table->append(with, r, r + 1, slots[r] - r);
        next = slots[r] + 1;
      }
    }
    i = end;
  }
  table->append(old, next, INT32_MAX, 0);
  return table;
}

}  // namespace kvfold
