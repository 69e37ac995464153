#include "engine/file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "engine/printable.h"

namespace kvfold {
namespace {

Status system_error(const std::string& path, const char* what) {
  return Status::error(fmt::format("{}: cannot {}: {}", path, what, std::strerror(errno)));
}

// Paths with a mark beside each, in memory that is there from the start, so that a signal handler may read
// it.
template <size_t kSlots>
class SignalSafeList {
 public:
  // The place taken; -1 where none is free or the path is too long. REQUIRES: mark != null.
  int add(const void* mark, size_t size, const std::string& path) {
    if (path.size() >= kMostPath) return -1;
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < kSlots; ++i) {
      Slot& slot = slots_[i];
      if (slot.mark.load() != nullptr) continue;
      std::memcpy(slot.path, path.c_str(), path.size() + 1);
      slot.size.store(size);
      slot.mark.store(mark);
      return static_cast<int>(i);
    }
    return -1;
  }
  void remove(int place) {
    if (place >= 0) slots_[place].mark.store(nullptr);
  }
  const char* find(const void* address) const {
    const auto* at = static_cast<const std::byte*>(address);
    for (const Slot& slot : slots_) {
      const auto* mark = static_cast<const std::byte*>(slot.mark.load());
      if (mark != nullptr && at >= mark && at < mark + slot.size.load()) return slot.path;
    }
    return nullptr;
  }
  template <class F>
  void each(F&& f) const {
    for (const Slot& slot : slots_)
      if (slot.mark.load() != nullptr) f(slot.path);
  }

 private:
  static constexpr size_t kMostPath = 1024;
  struct Slot {
    std::atomic<const void*> mark{nullptr};
    std::atomic<size_t> size{0};
    char path[kMostPath] = {};
  };
  std::mutex mutex_;
  Slot slots_[kSlots];
};

SignalSafeList<256> mappings;
SignalSafeList<64> temporaries;

}  // namespace

const char* mapped_path(const void* address) { return mappings.find(address); }
void remove_temporary_files() {
  temporaries.each([](const char* path) { ::unlink(path); });
}

MappedFile::MappedFile(std::string path, const std::byte* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

MappedFile::~MappedFile() {
  mappings.remove(known_);
  // munmap wants a pointer to non-const, though it does not write.
  if (owned_.empty() && size_ != 0) munmap(const_cast<std::byte*>(data_), size_);
}

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  // Not waiting, so that a pipe to which nobody writes is refused.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return system_error(path, "open");
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    const Status status = system_error(path, "stat");
    ::close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode) || info.st_size == 0) {
    ::close(fd);
    return Status::error(fmt::format("{}: expected a regular file that is not empty, found {}", path,
                                     S_ISREG(info.st_mode) ? "an empty file" : "something else"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  ::close(fd);
  if (data == MAP_FAILED) return system_error(path, "map");
  std::shared_ptr<MappedFile> file(new MappedFile(path, static_cast<const std::byte*>(data), size));
  file->opened_ = info;
  file->known_ = mappings.add(data, size, one_line(path));
  return std::shared_ptr<const MappedFile>(std::move(file));
}

std::shared_ptr<const MappedFile> MappedFile::of_bytes(const std::string& path,
                                                       std::vector<std::byte> bytes) {
  std::shared_ptr<MappedFile> file(new MappedFile(path, nullptr, bytes.size()));
  file->owned_ = std::move(bytes);
  file->data_ = file->owned_.data();
  return file;
}

Status MappedFile::unchanged() const {
  struct stat now {};
  if (!owned_.empty() || stat(path_.c_str(), &now) != 0) return {};
  if (now.st_dev != opened_.st_dev || now.st_ino != opened_.st_ino) return {};
  if (now.st_size == opened_.st_size && now.st_mtim.tv_sec == opened_.st_mtim.tv_sec &&
      now.st_mtim.tv_nsec == opened_.st_mtim.tv_nsec)
    return {};
  return Status::error(path_ + ": the file was changed while it was in use");
}

void MappedFile::release(std::span<const std::byte> part) const {
  if (!owned_.empty() || part.data() < data_ || part.data() + part.size() > data_ + size_) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (static_cast<size_t>(part.data() - data_) + page - 1) / page * page;
  const size_t end = (static_cast<size_t>(part.data() - data_) + part.size()) / page * page;
  if (begin < end) madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), temporary_(path_ + ".XXXXXX") {}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      known_(std::exchange(other.known_, -1)) {}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) {
    ::close(fd_);
    ::unlink(temporary_.c_str());
  }
  temporaries.remove(known_);
}

Status AtomicFile::fail(const char* what) const { return system_error(path_, what); }

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  AtomicFile out(path);  // whose memory is there before the file is, and which takes the file away again
  out.fd_ = mkostemp(out.temporary_.data(), O_CLOEXEC);
  if (out.fd_ < 0) return system_error(path, "create");
  out.known_ = temporaries.add(&temporaries, 1, out.temporary_);
  // mkostemp makes files private; a result file gets the mode that open() would have given it.
  const mode_t mask = umask(0);
  umask(mask);
  if (fchmod(out.fd_, 0666 & ~mask) != 0) return system_error(path, "set the mode of");
  return out;
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail("write");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status AtomicFile::reserve(uint64_t bytes) {
  if (bytes == 0) return {};
  int made = 0;
  do {
    made = fallocate(fd_, 0, 0, static_cast<off_t>(bytes));
  } while (made != 0 && errno == EINTR);
  if (made == 0) return {};
  // What fallocate cannot do, some file systems still do as they are written.
  const bool unsupported = errno == EOPNOTSUPP || errno == ENOSYS;
  if (!unsupported || ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return fail("write");
  return {};
}

Status AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail("write");
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

Status AtomicFile::commit() {
  if (fsync(fd_) != 0) return fail("flush");
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const Status status = fail("replace");
    ::unlink(temporary_.c_str());
    return status;
  }
  const std::filesystem::path parent = std::filesystem::path(path_).parent_path();
  const int folder = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return fail("open the folder of");
  const bool flushed = fsync(folder) == 0;
  ::close(folder);
  return flushed ? Status{} : fail("flush the folder of");
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::status(path, ignored).type() != std::filesystem::file_type::not_found;
}

Result<std::string> read_text_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return system_error(path, "open");
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const Status status = n < 0 ? system_error(path, "read") : Status{};
      ::close(fd);
      if (!status.ok()) return status;
      return text;
    }
    text.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace kvfold
