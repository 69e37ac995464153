#include "loaders/gguf.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/printable.h"
#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

// Smallest entries that a count can stand for: bounds the counts by the file's size before anything is
// allocated.
constexpr uint64_t kLeastMetadataEntry = 8 + 4 + 1;  // key length, type, the smallest value
constexpr uint64_t kLeastTensorEntry =
    8 + 4 + 8 + 4 + 8;  // name length, dimensions, one of them, type, offset
constexpr uint32_t kMostDimensions = 4;
constexpr uint64_t kMostKeyLength = 65535;  // the specification's limit for keys

// Bytes of a value of fixed size; 0 for strings and arrays.
size_t fixed_size(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// One integer element of a metadata value; nullopt where it does not fit into int64.
bool load_integer(GgufType type, const std::byte* bytes, int64_t& out) {
  switch (type) {
    case GgufType::kUint8:
      out = load<uint8_t>(bytes);
      return true;
    case GgufType::kInt8:
      out = load<int8_t>(bytes);
      return true;
    case GgufType::kUint16:
      out = load<uint16_t>(bytes);
      return true;
    case GgufType::kInt16:
      out = load<int16_t>(bytes);
      return true;
    case GgufType::kUint32:
      out = load<uint32_t>(bytes);
      return true;
    case GgufType::kInt32:
      out = load<int32_t>(bytes);
      return true;
    case GgufType::kInt64:
      out = load<int64_t>(bytes);
      return true;
    case GgufType::kUint64: {
      const auto value = load<uint64_t>(bytes);
      out = static_cast<int64_t>(value);
      return value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    }
    default:
      return false;
  }
}

bool is_integer(GgufType type) {
  return fixed_size(type) != 0 && type != GgufType::kBool && type != GgufType::kFloat32 &&
         type != GgufType::kFloat64;
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  constexpr const char* kNames[] = {"uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                    "bool",  "string", "array",  "uint64", "int64",  "float64"};
  const auto index = static_cast<uint32_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

// Reads a file from front to back; every read is bounded by what is left.
class GgufParser {
 public:
  explicit GgufParser(std::shared_ptr<const MappedFile> file) : bytes_(file->bytes()) {
    out_.file_ = std::move(file);
  }

  Result<GgufFile> parse() {
    uint64_t tensors = 0;
    uint64_t entries = 0;
    KVFOLD_RETURN_IF_ERROR(parse_header(tensors, entries));
    for (uint64_t i = 0; i < entries; ++i) KVFOLD_RETURN_IF_ERROR(parse_entry());
    KVFOLD_RETURN_IF_ERROR(parse_alignment());
    for (uint64_t i = 0; i < tensors; ++i) KVFOLD_RETURN_IF_ERROR(parse_tensor());
    KVFOLD_RETURN_IF_ERROR(place_tensors());
    return std::move(out_);
  }

 private:
  struct Placed {
    std::string_view name;
    uint64_t offset;  // from the start of the data
    uint64_t size;
    uint64_t entry;  // where its entry lies in the file
  };

  uint64_t left() const { return bytes_.size() - at_; }

  Status fail(uint64_t at, std::string_view what, std::string_view found, std::string_view expected) const {
    return Status::error(
        fmt::format("{}: {} at offset {}: found {}, expected {}", out_.path(), what, at, found, expected));
  }

  template <class T>
  Status read(T& out, std::string_view what) {
    if (left() < sizeof(T))
      return fail(at_, what, fmt::format("{} bytes left", left()), fmt::format("{}", sizeof(T)));
    out = load<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return {};
  }

  Status read_string(std::string_view& out, std::string_view what, uint64_t most) {
    const uint64_t begin = at_;
    uint64_t length = 0;
    KVFOLD_RETURN_IF_ERROR(read(length, what));
    if (length > std::min(left(), most))
      return fail(begin, fmt::format("length of {}", what), fmt::format("{}", length),
                  fmt::format("at most {}", std::min(left(), most)));
    out = {reinterpret_cast<const char*>(bytes_.data()) + at_, length};
    at_ += length;
    return {};
  }

  Status parse_header(uint64_t& tensors, uint64_t& entries) {
    uint32_t magic = 0;
    KVFOLD_RETURN_IF_ERROR(read(magic, "magic"));
    if (magic != 0x46554747)
      return fail(0, "magic", fmt::format("0x{:08x}", magic), "\"GGUF\" (0x46554747, little-endian)");
    KVFOLD_RETURN_IF_ERROR(read(out_.version_, "version"));
    if (out_.version_ != 2 && out_.version_ != 3)
      return fail(4, "version", fmt::format("{}", out_.version_), "2 or 3 (little-endian)");
    KVFOLD_RETURN_IF_ERROR(read(tensors, "tensor count"));
    KVFOLD_RETURN_IF_ERROR(read(entries, "metadata count"));
    if (tensors > left() / kLeastTensorEntry)
      return fail(8, "tensor count", fmt::format("{}", tensors),
                  fmt::format("at most {}, which is what the file has room for", left() / kLeastTensorEntry));
    if (entries > left() / kLeastMetadataEntry)
      return fail(
          16, "metadata count", fmt::format("{}", entries),
          fmt::format("at most {}, which is what the file has room for", left() / kLeastMetadataEntry));
    return {};
  }

  Status parse_type(GgufType& type, std::string_view key) {
    const uint64_t begin = at_;
    uint32_t id = 0;
    KVFOLD_RETURN_IF_ERROR(read(id, "value type"));
    if (id > static_cast<uint32_t>(GgufType::kFloat64))
      return fail(begin, fmt::format("value type of '{}'", printable(key)), fmt::format("{}", id), "0 to 12");
    type = static_cast<GgufType>(id);
    return {};
  }

  Status skip_elements(GgufType type, uint64_t count, std::string_view key) {
    if (type == GgufType::kString) {
      const std::string what = fmt::format("a string of '{}'", printable(key));
      std::string_view ignored;
      for (uint64_t i = 0; i < count; ++i) KVFOLD_RETURN_IF_ERROR(read_string(ignored, what, left()));
      return {};
    }
    const uint64_t size = fixed_size(type);
    if (count > left() / size)
      return fail(at_, fmt::format("value of '{}'", printable(key)), fmt::format("{} elements", count),
                  fmt::format("at most {}, which is what the file has room for", left() / size));
    if (type == GgufType::kBool) {
      for (uint64_t i = 0; i < count; ++i)
        if (const auto value = load<uint8_t>(bytes_.data() + at_ + i); value > 1)
          return fail(at_ + i, fmt::format("bool of '{}'", printable(key)), fmt::format("{}", value),
                      "0 or 1");
    }
    at_ += count * size;
    return {};
  }

  Status parse_entry() {
    const uint64_t begin = at_;
    std::string_view key;
    KVFOLD_RETURN_IF_ERROR(read_string(key, "metadata key", kMostKeyLength));
    if (key.empty()) return fail(begin, "metadata key", "an empty name", "a name");
    GgufValue value;
    KVFOLD_RETURN_IF_ERROR(parse_type(value.type, key));
    GgufType element = value.type;
    if (value.type == GgufType::kArray) {
      const uint64_t type_at = at_;
      KVFOLD_RETURN_IF_ERROR(parse_type(element, key));
      if (element == GgufType::kArray)
        return fail(type_at, fmt::format("element type of '{}'", printable(key)), "array",
                    "no arrays of arrays");
      KVFOLD_RETURN_IF_ERROR(read(value.count, "array length"));
      value.element = element;
      if (element == GgufType::kString && value.count > left() / 8)
        return fail(at_ - 8, fmt::format("length of '{}'", printable(key)), fmt::format("{}", value.count),
                    fmt::format("at most {}, which is what the file has room for", left() / 8));
    }
    const uint64_t value_at = at_;
    KVFOLD_RETURN_IF_ERROR(skip_elements(element, value.count, key));
    value.bytes = bytes_.subspan(value_at, at_ - value_at);
    if (!out_.metadata_.emplace(key, value).second)
      return fail(begin, "metadata key", fmt::format("'{}' a second time", printable(key)), "each key once");
    return {};
  }

  Status parse_alignment() {
    if (!out_.has("general.alignment")) return {};
    KVFOLD_ASSIGN_OR_RETURN(const int64_t alignment, out_.integer("general.alignment"));
    // The specification wants a multiple of 8, so that every element lies where the machine may load it.
    if (alignment < 8 || alignment > (1 << 20) || (alignment & (alignment - 1)) != 0)
      return Status::error(fmt::format(
          "{}: general.alignment: found {}, expected a power of two from 8 to 2^20", out_.path(), alignment));
    alignment_ = static_cast<uint64_t>(alignment);
    return {};
  }

  Status parse_shape(std::string_view name, GgufTensor& tensor, uint64_t& elements) {
    const uint64_t begin = at_;
    uint32_t dimensions = 0;
    KVFOLD_RETURN_IF_ERROR(read(dimensions, "dimension count"));
    if (dimensions < 1 || dimensions > kMostDimensions)
      return fail(begin, fmt::format("dimension count of tensor '{}'", printable(name)),
                  fmt::format("{}", dimensions), "1 to 4");
    elements = 1;
    for (uint32_t i = 0; i < dimensions; ++i) {
      uint64_t size = 0;
      const uint64_t size_at = at_;
      KVFOLD_RETURN_IF_ERROR(read(size, "dimension"));
      constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
      if (size == 0 || size > kMost / elements)
        return fail(size_at, fmt::format("dimension {} of tensor '{}'", i, printable(name)),
                    fmt::format("{}", size), "a size above 0 whose product with the others fits in 63 bits");
      elements *= size;
      tensor.shape.push_back(static_cast<int64_t>(size));
    }
    return {};
  }

  Status parse_tensor() {
    const uint64_t begin = at_;
    std::string_view name;
    KVFOLD_RETURN_IF_ERROR(read_string(name, "tensor name", kMostKeyLength));
    GgufTensor tensor;
    uint64_t elements = 0;
    KVFOLD_RETURN_IF_ERROR(parse_shape(name, tensor, elements));
    const uint64_t type_at = at_;
    uint32_t type = 0;
    KVFOLD_RETURN_IF_ERROR(read(type, "tensor type"));
    uint64_t offset = 0;
    const uint64_t offset_at = at_;
    KVFOLD_RETURN_IF_ERROR(read(offset, "tensor offset"));
    const FormatInfo* format = find_format(type);
    if (format == nullptr)
      return fail(type_at, fmt::format("type of tensor '{}'", printable(name)), fmt::format("{}", type),
                  "one of f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k");
    tensor.view.type = format->type;
    tensor.view.columns = tensor.shape[0];
    tensor.view.rows = static_cast<int64_t>(elements) / tensor.shape[0];
    if (tensor.view.columns % format->block_elements != 0)
      return fail(begin, fmt::format("row of tensor '{}'", printable(name)),
                  fmt::format("{} columns", tensor.view.columns),
                  fmt::format("a multiple of {} for {}", format->block_elements, format->name));
    // A block has at least one byte, so its bytes are at most 34/32 or 4 times its elements; both bounds are
    // checked.
    const uint64_t blocks = elements / static_cast<uint64_t>(format->block_elements);
    if (blocks > bytes_.size() / static_cast<uint64_t>(format->block_bytes))
      return fail(begin, fmt::format("size of tensor '{}'", printable(name)),
                  fmt::format("{} blocks", blocks),
                  fmt::format("at most {}, which is what the file has room for",
                              bytes_.size() / static_cast<uint64_t>(format->block_bytes)));
    if (offset % alignment_ != 0)
      return fail(offset_at, fmt::format("offset of tensor '{}'", printable(name)), fmt::format("{}", offset),
                  fmt::format("a multiple of {}", alignment_));
    if (!out_.tensors_.emplace(name, std::move(tensor)).second)
      return fail(begin, "tensor name", fmt::format("'{}' a second time", printable(name)), "each name once");
    placed_.push_back({name, offset, blocks * static_cast<uint64_t>(format->block_bytes), begin});
    return {};
  }

  Status place_tensors() {
    const uint64_t data = (at_ + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t room = data > bytes_.size() ? 0 : bytes_.size() - data;
    std::sort(placed_.begin(), placed_.end(),
              [](const Placed& a, const Placed& b) { return a.offset < b.offset; });
    uint64_t end = 0;
    std::string_view before;
    for (const Placed& p : placed_) {
      if (p.offset > room || p.size > room - p.offset)
        return fail(p.entry, fmt::format("data of tensor '{}'", printable(p.name)),
                    fmt::format("{} bytes from {}", p.size, p.offset),
                    fmt::format("an end within the {} bytes of data", room));
      if (p.offset < end)
        return fail(p.entry, fmt::format("data of tensor '{}'", printable(p.name)),
                    fmt::format("a start at {}", p.offset),
                    fmt::format("no overlap with '{}', which ends at {}", printable(before), end));
      end = p.offset + p.size;
      before = p.name;
      out_.tensors_.find(p.name)->second.view.data = bytes_.data() + data + p.offset;
    }
    return {};
  }

  GgufFile out_;
  std::span<const std::byte> bytes_;
  uint64_t at_ = 0;
  uint64_t alignment_ = 32;  // the specification's default
  std::vector<Placed> placed_;
};

Result<GgufFile> GgufFile::open(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  return parse(std::move(file));
}

Result<GgufFile> GgufFile::parse(std::shared_ptr<const MappedFile> file) {
  return GgufParser(std::move(file)).parse();
}

Result<const GgufValue*> GgufFile::find(std::string_view key) const {
  const auto at = metadata_.find(key);
  if (at == metadata_.end()) return Status::error(fmt::format("{}: key '{}' is missing", path(), key));
  return &at->second;
}

Status GgufFile::wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const {
  const std::string found = value.type == GgufType::kArray
                                ? fmt::format("array of {}", gguf_type_name(value.element))
                                : std::string(gguf_type_name(value.type));
  return Status::error(fmt::format("{}: key '{}': found {}, expected {}", path(), key, found, expected));
}

Result<const GgufValue*> GgufFile::find_array(std::string_view key, std::string_view what) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find(key));
  if (value->type != GgufType::kArray) return wrong_type(key, *value, what);
  return value;
}

Result<int64_t> GgufFile::integer(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find(key));
  if (!is_integer(value->type)) return wrong_type(key, *value, "an integer");
  int64_t out = 0;
  if (!load_integer(value->type, value->bytes.data(), out))
    return Status::error(fmt::format("{}: key '{}': found {}, expected at most 2^63 - 1", path(), key,
                                     load<uint64_t>(value->bytes.data())));
  return out;
}

Result<double> GgufFile::number(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find(key));
  if (value->type == GgufType::kFloat32) return static_cast<double>(load<float>(value->bytes.data()));
  if (value->type == GgufType::kFloat64) return load<double>(value->bytes.data());
  return wrong_type(key, *value, "float32 or float64");
}

Result<bool> GgufFile::boolean(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find(key));
  if (value->type != GgufType::kBool) return wrong_type(key, *value, "bool");
  return load<uint8_t>(value->bytes.data()) != 0;
}

Result<std::string_view> GgufFile::string(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find(key));
  if (value->type != GgufType::kString) return wrong_type(key, *value, "string");
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()) + 8, value->bytes.size() - 8);
}

Result<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find_array(key, "array of string"));
  if (value->element != GgufType::kString) return wrong_type(key, *value, "array of string");
  std::vector<std::string_view> out;
  out.reserve(value->count);
  const std::byte* at = value->bytes.data();
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto length = load<uint64_t>(at);
    out.emplace_back(reinterpret_cast<const char*>(at) + 8, length);
    at += 8 + length;
  }
  return out;
}

Result<std::vector<int32_t>> GgufFile::integers(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find_array(key, "array of integers"));
  if (!is_integer(value->element)) return wrong_type(key, *value, "array of integers");
  std::vector<int32_t> out;
  out.reserve(value->count);
  const size_t size = fixed_size(value->element);
  for (uint64_t i = 0; i < value->count; ++i) {
    int64_t x = 0;
    if (!load_integer(value->element, value->bytes.data() + i * size, x) || x != static_cast<int32_t>(x))
      return Status::error(fmt::format("{}: key '{}': element {} does not fit in 32 bits", path(), key, i));
    out.push_back(static_cast<int32_t>(x));
  }
  return out;
}

Result<std::vector<float>> GgufFile::floats(std::string_view key) const {
  KVFOLD_ASSIGN_OR_RETURN(const GgufValue* value, find_array(key, "array of float32"));
  if (value->element != GgufType::kFloat32) return wrong_type(key, *value, "array of float32");
  std::vector<float> out(value->count);
  if (!out.empty()) std::memcpy(out.data(), value->bytes.data(), value->bytes.size());
  return out;
}

const GgufTensor* GgufFile::tensor(std::string_view name) const {
  const auto at = tensors_.find(name);
  return at == tensors_.end() ? nullptr : &at->second;
}

std::vector<std::string_view> GgufFile::tensor_names() const {
  std::vector<std::string_view> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  std::ranges::sort(names);
  return names;
}

std::string_view GgufFile::name_of(const std::byte* data) const {
  for (const auto& [name, tensor] : tensors_)
    if (tensor.view.data == data) return name;
  return "";
}

}  // namespace kvfold
