#include "tests/fuzz/mutators.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/kv/cache_metadata.h"

namespace kvfold::fuzz {
namespace {

using nlohmann::json;

template <class T>
T load(const std::string& file, size_t at) {
  T value{};
  std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}

void store(std::string& file, size_t at, uint64_t value, size_t width) {
  std::memcpy(file.data() + at, &value, width);
}

struct Field {
  size_t at, width;
};
struct Range {
  size_t begin, end;
};

// Where a GGUF file's numbers, strings and entries lie, as far as it can be followed.
class GgufMap {
 public:
  explicit GgufMap(const std::string& file) : file_(file) {
    if (!number(4) || !number(4) || !number(8) || !number(8)) return;
    const auto tensor_count = load<uint64_t>(file_, 8);
    const auto entry_count = load<uint64_t>(file_, 16);
    for (uint64_t i = 0; i < entry_count && entry(); ++i) {
    }
    for (uint64_t i = 0; i < tensor_count && tensor(); ++i) {
    }
  }
  std::vector<Field> numbers;
  std::vector<Range> strings;  // with their lengths
  std::vector<Range> entries, tensors;

 private:
  size_t left() const { return file_.size() - at_; }
  bool number(size_t width) {
    if (left() < width) return false;
    numbers.push_back({at_, width});
    at_ += width;
    return true;
  }
  bool text() {
    const size_t begin = at_;
    if (!number(8)) return false;
    const auto length = load<uint64_t>(file_, begin);
    if (length > left()) return false;
    at_ += length;
    strings.push_back({begin, at_});
    return true;
  }
  bool values(uint32_t type, uint64_t count) {
    constexpr size_t kWidths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) {
      for (uint64_t i = 0; i < count; ++i)
        if (!text()) return false;
      return true;
    }
    if (type >= std::size(kWidths) || type == 9 || count > left() / kWidths[type]) return false;
    if (count > 0) numbers.push_back({at_, kWidths[type]});
    at_ += count * kWidths[type];
    return true;
  }
  bool entry() {
    const size_t begin = at_;
    if (!text() || !number(4)) return false;
    auto type = load<uint32_t>(file_, at_ - 4);
    uint64_t count = 1;
    if (type == 9) {
      if (!number(4) || !number(8)) return false;
      type = load<uint32_t>(file_, at_ - 12);
      count = load<uint64_t>(file_, at_ - 8);
    }
    if (!values(type, count)) return false;
    entries.push_back({begin, at_});
    return true;
  }
  bool tensor() {
    const size_t begin = at_;
    if (!text() || !number(4)) return false;
    const auto dimensions = load<uint32_t>(file_, at_ - 4);
    for (uint32_t i = 0; i < std::min(dimensions, 8U); ++i)
      if (!number(8)) return false;
    if (!number(4) || !number(8)) return false;
    tensors.push_back({begin, at_});
    return true;
  }
  const std::string& file_;
  size_t at_ = 0;
};

// An entry or a tensor doubled, dropped, or exchanged with another; the count follows most of the time.
std::string move_ranges(std::string file, const std::vector<Range>& ranges, size_t count_at, Dice& dice) {
  const Range a = ranges[dice.below(ranges.size())];
  const std::string text = file.substr(a.begin, a.end - a.begin);
  int64_t change = 0;
  const size_t what = dice.below(3);
  if (what == 0) {
    file.insert(a.end, text);
    change = 1;
  } else if (what == 1) {
    file.erase(a.begin, text.size());
    change = -1;
  } else {
    const Range b = ranges[dice.below(ranges.size())];
    if (a.end > b.begin) return file;
    const std::string other = file.substr(b.begin, b.end - b.begin);
    file.replace(b.begin, other.size(), text);
    file.replace(a.begin, text.size(), other);
  }
  if (!dice.one_in(8))
    store(file, count_at, load<uint64_t>(file, count_at) + static_cast<uint64_t>(change), 8);
  return file;
}

std::string with_length(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  store(out, 0, header.size(), 8);
  return out + header + data;
}

// One of the numbers in a JSON text set to an edge.
std::string edge_number(std::string text, Dice& dice) {
  std::vector<Range> numbers;
  for (size_t i = 0; i < text.size();) {
    if (text[i] < '0' || text[i] > '9') {
      ++i;
      continue;
    }
    const size_t begin = i;
    while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i;
    numbers.push_back({begin, i});
  }
  if (numbers.empty()) return text;
  const Range at = numbers[dice.below(numbers.size())];
  uint64_t about = 0;
  for (size_t i = at.begin; i < at.end; ++i) about = about * 10 + static_cast<uint64_t>(text[i] - '0');
  std::string value = std::to_string(dice.edge(about));
  if (dice.one_in(12)) value = "-" + value;
  if (dice.one_in(12)) value += dice.one_in(2) ? ".0" : "e2";
  return text.replace(at.begin, at.end - at.begin, value);
}

// A stretch between two commas or braces doubled or dropped.
std::string move_part(std::string text, Dice& dice) {
  std::vector<size_t> cuts;
  for (size_t i = 0; i < text.size(); ++i)
    if (text[i] == ',' || text[i] == '{' || text[i] == '[') cuts.push_back(i + 1);
  if (cuts.size() < 2) return text;
  const size_t first = dice.below(cuts.size() - 1);
  const size_t last = first + 1 + dice.below(std::min<size_t>(cuts.size() - first - 1, 6));
  const std::string part = text.substr(cuts[first], cuts[last] - cuts[first]);
  if (dice.one_in(2)) return text.erase(cuts[first], part.size());
  return text.insert(cuts[last], part);
}

std::string mutate_value(const std::string& value, Dice& dice, Scramble scramble) {
  switch (dice.below(4)) {
    case 0:
      return edge_number(value, dice);
    case 1:
      return move_part(value, dice);
    case 2:
      return scramble(value, value.size() + 16, dice);
    default: {
      constexpr const char* kValues[] = {
          "",    "0",  "1",    "-1",           "[]",           "{}",      "null",    "true", "f16",
          "f32", "q8", "1e39", "[[0,0,\"\"]]", "{\"0.0\":[]}", "[1,2,3]", "1048576", "0.0"};
      return kValues[dice.below(std::size(kValues))];
    }
  }
}

// A tensor's entry changed; what lies in the file stays.
void mutate_tensors(json& header, Dice& dice) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__" && entry.is_object()) names.push_back(name);
  if (names.empty()) return;
  json& entry = header[names[dice.below(names.size())]];
  constexpr const char* kTypes[] = {"F16", "F32", "I8", "U8", "BF16", "F64"};
  switch (dice.below(4)) {
    case 0:
      entry["dtype"] = kTypes[dice.below(std::size(kTypes))];
      break;
    case 1:
      entry["shape"] =
          json::parse(edge_number(entry.value("shape", json::array()).dump(), dice), nullptr, false);
      if (entry["shape"].is_discarded()) entry["shape"] = json::array();
      break;
    case 2:
      std::swap(entry, header[names[dice.below(names.size())]]);
      break;
    default:
      header.erase(names[dice.below(names.size())]);
  }
}

// As a writer would have it: checksums of the tensors where they lie, then of the metadata.
void make_true(json& header, const std::string& data) {
  json checksums = json::object();
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__" || !entry.is_object() || !entry.contains("data_offsets")) continue;
    const json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      continue;
    const auto begin = offsets[0].get<uint64_t>();
    const auto end = offsets[1].get<uint64_t>();
    if (begin > end || end > data.size()) continue;
    checksums[name] = checksum(std::as_bytes(std::span(data)).subspan(begin, end - begin));
  }
  json& metadata = header["__metadata__"];
  if (metadata.contains("checksums")) metadata["checksums"] = dump_json(checksums);
  std::map<std::string, std::string> all;
  for (const auto& [key, value] : metadata.items())
    if (value.is_string()) all[key] = value.get<std::string>();
  if (metadata.contains("checksum")) metadata["checksum"] = metadata_checksum(all);
}

}  // namespace

uint64_t Dice::next() {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return state_ * 0x2545F4914F6CDD1DU;
}

uint64_t Dice::edge(uint64_t about) {
  switch (below(5)) {
    case 0:
      return below(5);
    case 1:
      return (uint64_t{1} << below(64)) + below(3) - 1;
    case 2:
      return about + below(5) - 2;
    case 3:
      return ~uint64_t{0} - below(34);
    default:
      return about * (below(3) + 1) + (uint64_t{1} << below(64));
  }
}

std::string plain_scramble(std::string bytes, size_t most, Dice& dice) {
  const size_t at = dice.below(bytes.size() + 1);
  const size_t what = dice.below(3);
  if (what == 0 && at < bytes.size()) bytes[at] = static_cast<char>(dice.next());
  if (what == 1 && at < bytes.size()) bytes.erase(at, 1 + dice.below(8));
  if (what == 2 && bytes.size() < most) bytes.insert(at, 1, static_cast<char>(dice.next()));
  return bytes;
}

std::string mutate_gguf(const std::string& file, size_t most, Dice& dice, Scramble scramble) {
  const GgufMap map(file);
  if (map.strings.empty() || dice.one_in(8)) return scramble(file, most, dice);
  std::string out = file;
  const size_t what = dice.below(8);
  if (what < 4) {
    const Field field = map.numbers[dice.below(map.numbers.size())];
    uint64_t about = 0;
    std::memcpy(&about, file.data() + field.at, field.width);
    store(out, field.at, dice.edge(about), field.width);
  } else if (what == 4) {
    const Range at = map.strings[dice.below(map.strings.size())];
    const std::string text = scramble(out.substr(at.begin + 8, at.end - at.begin - 8), 64, dice);
    out.replace(at.begin + 8, at.end - at.begin - 8, text);
    store(out, at.begin, text.size(), 8);
  } else if (what == 5 && !map.tensors.empty()) {
    out = move_ranges(out, map.tensors, 8, dice);
  } else if (what == 6 && !map.entries.empty()) {
    out = move_ranges(out, map.entries, 16, dice);
  } else {
    out.resize(std::max<size_t>(1, out.size() - dice.below(std::min<size_t>(out.size(), 64))));
  }
  if (out.size() > most) out.resize(most);
  return out;
}

std::string mutate_safetensors(const std::string& file, size_t most, Dice& dice, Scramble scramble) {
  if (file.size() < 8 || load<uint64_t>(file, 0) > file.size() - 8 || dice.one_in(16))
    return scramble(file, most, dice);
  const auto length = load<uint64_t>(file, 0);
  std::string header = file.substr(8, length);
  std::string data = file.substr(8 + length);
  switch (dice.below(6)) {
    case 0:
    case 1:
      header = edge_number(header, dice);
      break;
    case 2:
      header = move_part(header, dice);
      break;
    case 3:
      data.resize(dice.one_in(2) ? data.size() + 1 + dice.below(8) : data.size() / 2);
      break;
    default:
      header = scramble(header, header.size() + 32, dice);
  }
  std::string out = with_length(header, data);
  if (dice.one_in(12)) store(out, 0, dice.edge(header.size()), 8);
  if (out.size() > most) out.resize(most);
  return out;
}

std::string mutate_cache(const std::string& file, size_t most, Dice& dice, Scramble scramble) {
  if (file.size() < 8 || load<uint64_t>(file, 0) > file.size() - 8 || dice.one_in(8))
    return mutate_safetensors(file, most, dice, scramble);
  const auto length = load<uint64_t>(file, 0);
  json header = json::parse(file.substr(8, length), nullptr, false);
  if (!header.is_object() || !header.contains("__metadata__") || !header["__metadata__"].is_object())
    return mutate_safetensors(file, most, dice, scramble);
  const std::string data = file.substr(8 + length);
  json& metadata = header["__metadata__"];
  for (size_t n = 1 + dice.below(2); n > 0; --n) {
    if (dice.one_in(4)) {
      mutate_tensors(header, dice);
      continue;
    }
    std::vector<std::string> keys;
    for (const auto& [key, value] : metadata.items())
      if (value.is_string()) keys.push_back(key);
    if (keys.empty()) break;
    const std::string& key = keys[dice.below(keys.size())];
    if (dice.one_in(16)) {
      metadata.erase(key);
    } else {
      metadata[key] = to_utf8(mutate_value(metadata[key].get<std::string>(), dice, scramble));
    }
  }
  if (!dice.one_in(16)) make_true(header, data);
  std::string out = with_length(dump_json(header), data);
  if (out.size() > most) out.resize(most);
  return out;
}

}  // namespace kvfold::fuzz
