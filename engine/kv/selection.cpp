#include "engine/kv/selection.h"

#include <fmt/core.h>

#include <charconv>
#include <numeric>
#include <optional>

#include "engine/printable.h"

namespace kvfold {
namespace {

std::vector<int> iota(int count) {
  std::vector<int> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

// A number without sign that fills the whole of `text`.
std::optional<int> parse_index(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.front() == '-') return std::nullopt;
  return value;
}

// The end of a message about an index: what could have been asked for.
std::string what_exists(int count) {
  return count == 0 ? "there are none" : fmt::format("0-{} exist", count - 1);
}

// Takes the text up to `separator` off the front of `rest`.
std::string_view take(std::string_view& rest, char separator) {
  const size_t at = rest.find(separator);
  const std::string_view head = rest.substr(0, at);
  rest = at == std::string_view::npos ? std::string_view{} : rest.substr(at + 1);
  return head;
}

Status parse_parts(std::string_view text, Selection& selection) {
  selection.keys = text == "k" || text == "kv" || text == "*";
  selection.values = text == "v" || text == "kv" || text == "*";
  if (selection.keys || selection.values) return {};
  return Status::error(fmt::format("selection: parts={}: expected k, v or kv", printable(text)));
}

}  // namespace

Result<std::vector<int>> parse_ranges(std::string_view text, std::string_view what, int count) {
  if (text == "*") return iota(count);
  const auto refuse = [&](std::string_view range, std::string_view why) {
    return Status::error(fmt::format("selection: {}={}: '{}' {}; {}", what, printable(text), printable(range),
                                     why, what_exists(count)));
  };
  std::vector<int> out;
  std::string_view rest = text;
  if (text.empty()) return out;
  if (text.back() == ',') return refuse("", "is no range");
  while (!rest.empty()) {
    const std::string_view range = take(rest, ',');
    std::string_view ends = range;
    const bool one = range.find('-') == std::string_view::npos;
    const std::optional<int> first = parse_index(take(ends, '-'));
    const std::optional<int> last = one ? first : parse_index(ends);
    if (!first || !last) return refuse(range, "is neither a number nor a range such as 3-12");
    if (*last < *first) return refuse(range, "is reversed");
    if (*last >= count) return refuse(range, "is out of range");
    if (!out.empty() && *first <= out.back())
      return refuse(range, "overlaps or precedes what comes before it");
    for (int i = *first; i <= *last; ++i) out.push_back(i);
  }
  return out;
}

Selection Selection::all(const CacheShape& shape, int rows) {
  return {iota(shape.layers), iota(shape.kv_heads), iota(rows), true, true};
}

Result<Selection> Selection::parse(std::string_view text, const CacheShape& shape, int rows) {
  Selection selection = all(shape, rows);
  std::string seen;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view word = take(rest, ' ');
    if (word.empty()) continue;
    std::string_view value = word;
    const std::string_view key = take(value, '=');
    if (key.size() == word.size()) {
      return Status::error(
          fmt::format("selection: '{}': expected layers=, heads=, parts= or rows=", printable(word)));
    }
    if (seen.find(fmt::format(" {} ", key)) != std::string::npos)
      return Status::error(fmt::format("selection: {}= is given twice", printable(key)));
    seen += fmt::format(" {} ", key);
    if (key == "layers") {
      KVFOLD_ASSIGN_OR_RETURN(selection.layers, parse_ranges(value, key, shape.layers));
    } else if (key == "heads") {
      KVFOLD_ASSIGN_OR_RETURN(selection.heads, parse_ranges(value, key, shape.kv_heads));
    } else if (key == "rows") {
      KVFOLD_ASSIGN_OR_RETURN(selection.rows, parse_ranges(value, key, rows));
    } else if (key == "parts") {
      KVFOLD_RETURN_IF_ERROR(parse_parts(value, selection));
    } else {
      return Status::error(
          fmt::format("selection: unknown word '{}'; known are layers, heads, parts, rows", printable(key)));
    }
  }
  return selection;
}

Status Selection::check(const CacheShape& shape, int row_count) const {
  const auto check_indices = [](const std::vector<int>& indices, const char* what, int count) {
    for (size_t i = 0; i < indices.size(); ++i) {
      if (indices[i] < 0 || indices[i] >= count)
        return Status::error(fmt::format("selection: {} {} asked; {}", what, indices[i], what_exists(count)));
      if (i > 0 && indices[i] <= indices[i - 1])
        return Status::error(fmt::format("selection: {} {} after {}: expected increasing order", what,
                                         indices[i], indices[i - 1]));
    }
    return Status{};
  };
  KVFOLD_RETURN_IF_ERROR(check_indices(layers, "layer", shape.layers));
  KVFOLD_RETURN_IF_ERROR(check_indices(heads, "head", shape.kv_heads));
  return check_indices(rows, "row", row_count);
}

}  // namespace kvfold
