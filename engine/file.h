// Files as the loaders and the cache files need them: read-only maps, and writes that a crash cannot halve.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/status.h"

namespace kvfold {

// A whole file mapped read-only. Owns the mapping; the bytes live as long as the object does.
class MappedFile {
 public:
  // Errors: the file cannot be opened, is not a regular file, or is empty; the message names `path`.
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  // Bytes that lie in memory already, as if they had been read from `path`: for tests and fuzzing.
  static std::shared_ptr<const MappedFile> of_bytes(const std::string& path, std::vector<std::byte> bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // An error where somebody wrote into the file since it was opened, as what is read is then of two files.
  // (One that was replaced by another of its name is still there for who has opened it.)
  Status unchanged() const;
  // Gives back the memory that whole pages of `part` of the mapping take; looking at them reads them again.
  // Does nothing where `part` lies elsewhere.
  void release(std::span<const std::byte> part) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size);
  std::string path_;
  const std::byte* data_;
  size_t size_;
  struct stat opened_ {};         // as it was when it was opened
  int known_ = -1;                // among the mappings that mapped_path() knows; -1: not
  std::vector<std::byte> owned_;  // of_bytes(): what data_ points to
};

// For a program's handler of SIGBUS, which the system sends to who reads a mapped file that was cut short
// meanwhile. Both may be called in a signal handler.
//
// The path, fit for a terminal, of the mapping in which `address` lies, null where it is in none. (Of the
// first 256 mappings, with paths up to 1023 bytes.)
const char* mapped_path(const void* address);
// Removes the temporary file of every AtomicFile that is not committed yet (of the first 64).
void remove_temporary_files();

// A file that appears under its name whole or not at all: written to a temporary name beside it, flushed
// (fsync), renamed, and the folder flushed. Destroyed before commit(), it leaves nothing behind.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  const std::string& path() const { return path_; }
  Status write(std::span<const std::byte> bytes);
  Status write(const std::string& text) { return write(std::as_bytes(std::span(text))); }
  // Gives the file its final size, and the space for it where the file system can say so at once; what is not
  // written later is zero. Makes writing several times as fast.
  Status reserve(uint64_t bytes);
  // Writes at an offset; may be called from several threads for ranges that do not overlap.
  Status write_at(uint64_t offset, std::span<const std::byte> bytes) const;
  Status commit();

 private:
  explicit AtomicFile(std::string path);
  Status fail(const char* what) const;
  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  int known_ = -1;  // among the files that remove_temporary_files() knows; -1: not
};

// Whether something is there. What cannot be looked at is, so that opening it says why.
bool file_exists(const std::string& path);

// The whole of a text file. Errors name `path`.
Result<std::string> read_text_file(const std::string& path);

}  // namespace kvfold
