#include "engine/safetensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/printable.h"

namespace kvfold {
namespace {

constexpr uint64_t kMostHeader = 100'000'000;  // the format's own limit
constexpr size_t kPrefix = 8;                  // the header's length, u64 little-endian

// Reads the header event by event. nlohmann's own DOM would silently keep one of two equal keys.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  struct Entry {
    std::string dtype;
    std::vector<uint64_t> shape, offsets;
    bool has_dtype = false, has_shape = false, has_offsets = false;
  };
  std::map<std::string, std::string> metadata;
  std::map<std::string, Entry> entries;
  std::string error;

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return refuse(fmt::format("the negative number {}", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return refuse(fmt::format("the number {}", printable(text)));
  }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ != State::kShape && state_ != State::kOffsets)
      return refuse(fmt::format("the number {}", value));
    const bool shape = state_ == State::kShape;
    std::vector<uint64_t>& list = shape ? entry_->shape : entry_->offsets;
    const size_t most = shape ? kMostSafetensorsDimensions : 2;
    if (list.size() == most)
      return fail(fmt::format("'{}': {}: found more than {} numbers", printable(tensor_),
                              shape ? "shape" : "data_offsets", most));
    list.push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadataValue) {
      metadata[key_] = value;
      state_ = State::kMetadata;
      return true;
    }
    if (state_ == State::kDtype) {
      entry_->dtype = value;
      state_ = State::kTensor;
      return true;
    }
    return refuse("a string");
  }

  bool start_object(size_t) override {
    switch (state_) {
      case State::kBegin:
        state_ = State::kTop;
        return true;
      case State::kTopValue:
        state_ = tensor_ == "__metadata__" ? State::kMetadata : State::kTensor;
        return true;
      default:
        return refuse("an object");
    }
  }
  bool end_object() override {
    if (state_ == State::kTensor) {
      if (!entry_->has_dtype || !entry_->has_shape || !entry_->has_offsets)
        return fail(fmt::format("'{}': expected dtype, shape and data_offsets", printable(tensor_)));
    }
    state_ = state_ == State::kTop ? State::kEnd : State::kTop;
    return true;
  }
  bool start_array(size_t) override {
    if (state_ == State::kShapeBegin)
      state_ = State::kShape;
    else if (state_ == State::kOffsetsBegin)
      state_ = State::kOffsets;
    else
      return refuse("an array");
    return true;
  }
  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }

  bool key(string_t& name) override {
    if (state_ == State::kTop) {
      tensor_ = name;
      state_ = State::kTopValue;
      bool first = false;
      if (name == "__metadata__") {
        first = !std::exchange(has_metadata_, true);
      } else {
        const auto [at, added] = entries.try_emplace(name);
        entry_ = &at->second;
        first = added;
      }
      return first || fail(fmt::format("key '{}' stands twice", printable(name)));
    }
    if (state_ == State::kMetadata) {
      key_ = name;
      state_ = State::kMetadataValue;
      return !metadata.contains(name) ||
             fail(fmt::format("__metadata__ key '{}' stands twice", printable(name)));
    }
    return tensor_key(name);
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return fail(fmt::format("header is not JSON near offset {}", kPrefix + position));
  }

 private:
  enum class State {
    kBegin,
    kTop,
    kTopValue,
    kMetadata,
    kMetadataValue,
    kTensor,
    kDtype,
    kShapeBegin,
    kShape,
    kOffsetsBegin,
    kOffsets,
    kEnd
  };

  bool tensor_key(const std::string& name) {
    bool* seen = name == "dtype"          ? &entry_->has_dtype
                 : name == "shape"        ? &entry_->has_shape
                 : name == "data_offsets" ? &entry_->has_offsets
                                          : nullptr;
    if (seen == nullptr)
      return fail(fmt::format("'{}': found key '{}', expected dtype, shape and data_offsets",
                              printable(tensor_), printable(name)));
    if (*seen) return fail(fmt::format("'{}': key '{}' stands twice", printable(tensor_), name));
    *seen = true;
    state_ = name == "dtype" ? State::kDtype : name == "shape" ? State::kShapeBegin : State::kOffsetsBegin;
    return true;
  }

  bool fail(std::string message) {
    if (error.empty()) error = std::move(message);
    return false;
  }
  bool refuse(const std::string& found) {
    std::string where = state_ == State::kBegin ? "header" : fmt::format("'{}'", printable(tensor_));
    if (state_ == State::kMetadataValue) where += fmt::format(": '{}'", printable(key_));
    const char* expected = "another kind of value";
    switch (state_) {
      case State::kBegin:
        expected = "an object";
        break;
      case State::kTopValue:
        expected = "an object";
        break;
      case State::kMetadataValue:
      case State::kDtype:
        expected = "a string";
        break;
      case State::kShapeBegin:
      case State::kOffsetsBegin:
        expected = "an array";
        break;
      case State::kShape:
      case State::kOffsets:
        expected = "integers from 0 to 2^64 - 1";
        break;
      default:
        break;
    }
    return fail(fmt::format("{}: found {}, expected {}", where, found, expected));
  }

  State state_ = State::kBegin;
  std::string tensor_, key_;  // last key at the top level and below __metadata__
  Entry* entry_ = nullptr;    // of tensor_, where that is a tensor
  bool has_metadata_ = false;
};

Status fail(const std::string& path, const std::string& message) {
  return Status::error(path + ": " + message);
}

// Checks one entry and makes the tensor of it.
Status make_tensor(const std::string& path, const std::string& name, const HeaderReader::Entry& entry,
                   std::span<const std::byte> data, SafetensorsTensor& out) {
  const std::string where = fmt::format("tensor '{}'", printable(name));
  const auto element = static_cast<uint64_t>(safetensors_element_bytes(entry.dtype));
  if (element == 0) return fail(path, fmt::format("{}: unknown dtype '{}'", where, printable(entry.dtype)));
  uint64_t size = element;
  for (const uint64_t n : entry.shape) {
    constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
    if (n > kMost || (n != 0 && size > kMost / n))
      return fail(path, where + ": its shape's product overflows");
    size *= n;
    out.shape.push_back(static_cast<int64_t>(n));
  }
  if (entry.offsets.size() != 2)
    return fail(path, fmt::format("{}: found {} data_offsets, expected 2", where, entry.offsets.size()));
  const uint64_t begin = entry.offsets[0];
  const uint64_t end = entry.offsets[1];
  if (begin > end || end > data.size())
    return fail(path, fmt::format("{}: found data_offsets [{}, {}], expected a range in [0, {}]", where,
                                  begin, end, data.size()));
  if (end - begin != size)
    return fail(path, fmt::format("{}: found {} bytes of data, expected {} by dtype and shape", where,
                                  end - begin, size));
  out.dtype = entry.dtype;
  out.bytes = data.subspan(begin, size);
  return {};
}

std::string dump(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

uint64_t tensor_bytes(const SafetensorsEntry& tensor) {
  auto size = static_cast<uint64_t>(safetensors_element_bytes(tensor.dtype));
  for (const int64_t n : tensor.shape) size *= static_cast<uint64_t>(n);
  return size;
}

}  // namespace

int safetensors_element_bytes(std::string_view dtype) {
  constexpr std::pair<std::string_view, int> kTypes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  for (const auto& [name, bytes] : kTypes)
    if (name == dtype) return bytes;
  return 0;
}

Result<SafetensorsFile> parse_safetensors(std::span<const std::byte> bytes, const std::string& path) {
  uint64_t length = 0;
  if (bytes.size() < kPrefix)
    return fail(path, fmt::format("found {} bytes, expected at least {}", bytes.size(), kPrefix));
  std::memcpy(&length, bytes.data(), sizeof length);
  const uint64_t most = std::min<uint64_t>(bytes.size() - kPrefix, kMostHeader);
  if (length > most)
    return fail(path, fmt::format("header length at offset 0: found {}, expected at most {}", length, most));
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + kPrefix;
  if (length == 0 || text[0] != '{') return fail(path, "header at offset 8: expected it to begin with '{'");
  // The JSON parser takes a null byte for the end of its input.
  if (const void* null = std::memchr(text, 0, length); null != nullptr)
    return fail(path, fmt::format("header: found a null byte at offset {}, expected JSON",
                                  static_cast<const char*>(null) - text + kPrefix));
  HeaderReader reader;
  const bool parsed = nlohmann::json::sax_parse(text, text + length, &reader);
  if (!parsed) return fail(path, reader.error.empty() ? "header is not JSON" : reader.error);

  SafetensorsFile file;
  file.metadata = std::move(reader.metadata);
  const std::span<const std::byte> data = bytes.subspan(kPrefix + length);
  std::vector<std::pair<std::span<const std::byte>, std::string_view>> ranges;
  for (const auto& [name, entry] : reader.entries) {
    SafetensorsTensor tensor;
    KVFOLD_RETURN_IF_ERROR(make_tensor(path, name, entry, data, tensor));
    ranges.emplace_back(tensor.bytes, name);
    file.tensors.emplace(name, std::move(tensor));
  }
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
  });
  size_t end = 0;
  for (const auto& [range, name] : ranges) {
    const auto begin = static_cast<size_t>(range.data() - data.data());
    if (begin != end)
      return fail(path, fmt::format("tensor '{}': its data begins at {}, expected {}: no {}", printable(name),
                                    begin, end, begin < end ? "overlap" : "hole"));
    end = begin + range.size();
  }
  if (end != data.size())
    return fail(path, fmt::format("found {} bytes behind the last tensor, expected none", data.size() - end));
  return file;
}

// Length, header, and spaces so that the data is aligned.
std::string SafetensorsWriter::header(const std::map<std::string, std::string>& metadata) const {
  std::string text = "{\"__metadata__\":" + dump(metadata) + entries_ + '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + text;
}

Result<SafetensorsWriter> SafetensorsWriter::create(AtomicFile& file,
                                                    const std::map<std::string, std::string>& metadata,
                                                    std::span<const SafetensorsEntry> tensors) {
  std::string entries;
  std::vector<uint64_t> offsets = {0};
  for (const SafetensorsEntry& tensor : tensors) {
    const uint64_t begin = offsets.back();
    offsets.push_back(begin + tensor_bytes(tensor));
    entries += fmt::format(",{}:{{\"dtype\":{},\"shape\":{},\"data_offsets\":[{},{}]}}", dump(tensor.name),
                           dump(tensor.dtype), dump(tensor.shape), begin, offsets.back());
  }
  SafetensorsWriter writer(file, std::move(entries), std::move(offsets));
  writer.data_ = writer.header(metadata).size();
  const uint64_t length = writer.data_ - kPrefix;
  if (length > kMostHeader)
    return fail(file.path(), fmt::format("names and metadata make a header of {} bytes, expected at most {}",
                                         length, kMostHeader));
  KVFOLD_RETURN_IF_ERROR(file.reserve(writer.data_ + writer.offsets_.back()));
  return writer;
}

Status SafetensorsWriter::write(size_t index, std::span<const std::byte> bytes) const {
  KVFOLD_CHECK(bytes.size() == offsets_[index + 1] - offsets_[index]);
  return file_->write_at(data_ + offsets_[index], bytes);
}

Status SafetensorsWriter::finish(const std::map<std::string, std::string>& metadata) {
  const std::string text = header(metadata);
  KVFOLD_CHECK(text.size() == data_);
  return file_->write_at(0, std::as_bytes(std::span(text)));
}

Status write_safetensors(AtomicFile& file, const std::map<std::string, std::string>& metadata,
                         std::span<const SafetensorsEntry> tensors) {
  KVFOLD_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(file, metadata, tensors));
  for (size_t i = 0; i < tensors.size(); ++i) KVFOLD_RETURN_IF_ERROR(writer.write(i, tensors[i].bytes()));
  return writer.finish(metadata);
}

}  // namespace kvfold
