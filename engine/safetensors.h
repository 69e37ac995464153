// The safetensors format: a length, a JSON header, the tensors' bytes. About the format alone: what the
// tensors mean is its users' business (cache files here, checkpoints in the loaders).
//
// Source: huggingface/safetensors, README "Format". Read strictly: a file that this reader takes has one
// meaning.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/file.h"
#include "engine/status.h"

namespace kvfold {

inline constexpr size_t kMostSafetensorsDimensions = 64;  // numpy's and torch's own limit

struct SafetensorsTensor {
  std::string dtype;  // "F16", "F32", "I8", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

struct SafetensorsFile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafetensorsTensor> tensors;
};

// Reads a whole file's bytes; the tensors point into them. Checked: the header's length (up to 100 MB and
// within the file), that it is one UTF-8 JSON object without a repeated key at any level, known dtypes,
// shapes of non-negative integers (up to kMostSafetensorsDimensions), ranges that hold exactly what the shape
// says, and that these cover the data without hole or overlap. Errors: one line that names `path` and the key
// or offset.
Result<SafetensorsFile> parse_safetensors(std::span<const std::byte> bytes, const std::string& path);

// Bytes of one element; 0 for an unknown dtype.
int safetensors_element_bytes(std::string_view dtype);

// A tensor to be written.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  // For write_safetensors(): called once, when the tensor's turn comes; the bytes are read before the next
  // entry's are asked for. REQUIRES: as many bytes as dtype and shape say.
  std::function<std::span<const std::byte>()> bytes = {};
};

// Writes a file whose metadata is known only when its tensors are (their checksums, say). Names and metadata
// that are not UTF-8 are written with U+FFFD in place of what is wrong.
class SafetensorsWriter {
 public:
  // Lays the file out. Errors: there is no room for it; a header over 100 MB, which no reader takes.
  // REQUIRES: `file` outlives this; no name twice, none "__metadata__".
  static Result<SafetensorsWriter> create(AtomicFile& file,
                                          const std::map<std::string, std::string>& metadata,
                                          std::span<const SafetensorsEntry> tensors);
  // The bytes of tensors[index]. Tensors may come in any order and from several threads.
  Status write(size_t index, std::span<const std::byte> bytes) const;
  // Writes the header. REQUIRES: every tensor was written; metadata with the keys given to create(), and
  // values that take as much room.
  Status finish(const std::map<std::string, std::string>& metadata);

 private:
  SafetensorsWriter(AtomicFile& file, std::string entries, std::vector<uint64_t> offsets)
      : file_(&file), entries_(std::move(entries)), offsets_(std::move(offsets)) {}
  std::string header(const std::map<std::string, std::string>& metadata) const;
  AtomicFile* file_;
  std::string entries_;            // the header's text behind the metadata
  std::vector<uint64_t> offsets_;  // of tensors within the data, and its end
  uint64_t data_ = 0;              // where the data begins
};

// Writes header and tensors, in the given order. Errors and requirements: those of SafetensorsWriter.
Status write_safetensors(AtomicFile& file, const std::map<std::string, std::string>& metadata,
                         std::span<const SafetensorsEntry> tensors);

}  // namespace kvfold
