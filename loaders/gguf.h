// GGUF files: metadata and tensors, checked and still mapped.
//
// Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian. Every count, length,
// size and offset is checked against the file before it is used, so that a file of n bytes can cause neither
// a read outside it nor work or memory much above n.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/file.h"
#include "engine/status.h"
#include "engine/text_hash.h"
#include "kernels/views.h"

namespace kvfold {

// The values are the metadata value type ids of the specification.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};
const char* gguf_type_name(GgufType type);

// A metadata value, still in the file. For arrays `element` is the type of the elements and `count` their
// number.
struct GgufValue {
  GgufType type = GgufType::kUint8;
  GgufType element = GgufType::kUint8;
  uint64_t count = 1;
  std::span<const std::byte>
      bytes;  // the value; for strings and arrays of strings with their length prefixes
};

struct GgufTensor {
  MatrixView view;             // rows is the product of all dimensions but the first; columns the first
  std::vector<int64_t> shape;  // as in the file: columns first
};

class GgufFile {
 public:
  // Errors: anything in which the file departs from the specification; one line with path and offset or key.
  static Result<GgufFile> open(const std::string& path);
  static Result<GgufFile> parse(std::shared_ptr<const MappedFile> file);

  const std::string& path() const { return file_->path(); }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }
  uint32_t version() const { return version_; }

  bool has(std::string_view key) const { return metadata_.contains(key); }
  // Values by key. Errors: the key is missing, or of another type than asked (integers of any width and sign
  // are read as int64 where they fit; float32 and float64 as double).
  Result<int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;
  Result<std::vector<std::string_view>> strings(std::string_view key) const;
  Result<std::vector<int32_t>> integers(std::string_view key) const;
  Result<std::vector<float>> floats(std::string_view key) const;

  // Null when there is none of that name.
  const GgufTensor* tensor(std::string_view name) const;
  // The name of the tensor whose data begins there; "" where none does.
  std::string_view name_of(const std::byte* data) const;
  // Of all tensors, sorted.
  std::vector<std::string_view> tensor_names() const;

 private:
  friend class GgufParser;
  Result<const GgufValue*> find(std::string_view key) const;
  Result<const GgufValue*> find_array(std::string_view key, std::string_view what) const;
  Status wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const;

  std::shared_ptr<const MappedFile> file_;
  uint32_t version_ = 0;
  std::unordered_map<std::string_view, GgufValue, TextHash> metadata_;
  std::unordered_map<std::string_view, GgufTensor, TextHash> tensors_;
};

}  // namespace kvfold
