#include "tests/faults/faults.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// The C library's own, by names that nobody overrides.
extern "C" {
void* __libc_malloc(size_t);            // NOLINT: the C library's names
void* __libc_calloc(size_t, size_t);    // NOLINT: the C library's names
void* __libc_realloc(void*, size_t);    // NOLINT: the C library's names
void* __libc_memalign(size_t, size_t);  // NOLINT: the C library's names
void __libc_free(void*);                // NOLINT: the C library's names
}

namespace kvfold::faults {
namespace {

// Plain numbers: these are read before any constructor has run.
std::atomic<int> armed{-1};
std::atomic<int64_t> left{0};  // calls until the one that fails
std::atomic<bool> from_then_on{false};
std::atomic<int> other_error{0};
std::atomic<bool> fired{false};
std::atomic<int64_t> live{0};

bool fails(Kind kind) {
  if (armed.load(std::memory_order_relaxed) != static_cast<int>(kind)) return false;
  const int64_t now = left.fetch_sub(1) - 1;
  if (now > 0 || (now < 0 && !from_then_on.load())) return false;
  if (!fired.exchange(true)) {
    const char* path = std::getenv("KVFOLD_FAULT_FIRED");
    if (path != nullptr) syscall(SYS_close, syscall(SYS_open, path, O_CREAT | O_WRONLY, 0666));
  }
  return true;
}

// The errno of a call that fails.
int error_or(int usual) {
  const int other = other_error.load(std::memory_order_relaxed);
  return other != 0 ? other : usual;
}

void* counted(void* memory) {
  if (memory != nullptr) live.fetch_add(1, std::memory_order_relaxed);
  return memory;
}
void* no_memory() {
  errno = ENOMEM;
  return nullptr;
}

// The function that would have been called without this file.
template <class F>
F next(F, const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

// "alloc:12:on", once the program has begun.
void arm_from_environment() {
  const char* text = std::getenv("KVFOLD_FAULT");
  if (text == nullptr) return;
  char kind[16] = {};
  char how[8] = {};
  long n = 0;
  if (std::sscanf(text, "%15[a-z]:%ld:%7s", kind, &n, how) != 3) return;
  for (int i = 0; i < static_cast<int>(Kind::kMost); ++i)
    if (std::strcmp(kKindNames[i], kind) == 0) arm(static_cast<Kind>(i), n, std::strcmp(how, "on") == 0);
}

}  // namespace

void arm(Kind kind, int64_t n, bool persistent, int error) {
  other_error.store(error);
  left.store(n);
  from_then_on.store(persistent);
  fired.store(false);
  armed.store(static_cast<int>(kind));
}
bool disarm() {
  armed.store(-1);
  return fired.load();
}
int64_t live_allocations() { return live.load(); }

}  // namespace kvfold::faults

using kvfold::faults::counted;
using kvfold::faults::error_or;
using kvfold::faults::fails;
using kvfold::faults::Kind;
using kvfold::faults::next;
using kvfold::faults::no_memory;

extern "C" {

void* malloc(size_t size) noexcept {
  return fails(Kind::kAllocation) ? no_memory() : counted(__libc_malloc(size));
}
void* calloc(size_t count, size_t size) noexcept {
  return fails(Kind::kAllocation) ? no_memory() : counted(__libc_calloc(count, size));
}
void* realloc(void* memory, size_t size) noexcept {
  if (size != 0 && fails(Kind::kAllocation)) return no_memory();
  void* out = __libc_realloc(memory, size);
  if (memory == nullptr) counted(out);
  if (memory != nullptr && size == 0) kvfold::faults::live.fetch_sub(1);
  return out;
}
void* memalign(size_t alignment, size_t size) noexcept {
  return fails(Kind::kAllocation) ? no_memory() : counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(size_t alignment, size_t size) noexcept { return memalign(alignment, size); }
int posix_memalign(void** out, size_t alignment, size_t size) noexcept {
  *out = memalign(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
void free(void* memory) noexcept {
  if (memory != nullptr) kvfold::faults::live.fetch_sub(1, std::memory_order_relaxed);
  __libc_free(memory);
}

// The mode, where there is one, is passed on whether it is looked at or not.
int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = va_arg(list, mode_t);
  va_end(list);
  if (fails(Kind::kOpen)) return errno = error_or(EMFILE), -1;
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
int mkostemp(char* path, int flags) {
  static const auto kNext = next(&mkostemp, "mkostemp");
  if (fails(Kind::kOpen)) return errno = error_or(EMFILE), -1;
  return kNext(path, flags);
}
ssize_t read(int fd, void* to, size_t size) {
  if (fails(Kind::kRead)) return errno = error_or(EIO), -1;
  return syscall(SYS_read, fd, to, size);
}
void* mmap(void* at, size_t size, int protection, int flags, int fd, off_t offset) noexcept {
  if (fails(Kind::kMap)) return errno = error_or(ENOMEM), MAP_FAILED;
  auto* const memory = reinterpret_cast<void*>(syscall(SYS_mmap, at, size, protection, flags, fd, offset));
  const char* const cut = fd < 0 ? nullptr : std::getenv("KVFOLD_FAULT_CUT");
  if (cut != nullptr && truncate(cut, 0) != 0) std::abort();
  return memory;
}
ssize_t write(int fd, const void* from, size_t size) {
  if (fd > 2 && fails(Kind::kWrite)) return errno = error_or(ENOSPC), -1;
  return syscall(SYS_write, fd, from, size);
}
ssize_t pwrite(int fd, const void* from, size_t size, off_t offset) {
  if (fails(Kind::kWrite)) return errno = error_or(ENOSPC), -1;
  return syscall(SYS_pwrite64, fd, from, size, offset);
}
int fallocate(int fd, int mode, off_t offset, off_t size) {
  if (fails(Kind::kWrite)) return errno = error_or(ENOSPC), -1;
  return static_cast<int>(syscall(SYS_fallocate, fd, mode, offset, size));
}
int ftruncate(int fd, off_t size) noexcept {
  if (fails(Kind::kWrite)) return errno = error_or(EIO), -1;
  return static_cast<int>(syscall(SYS_ftruncate, fd, size));
}
int fsync(int fd) {
  if (fails(Kind::kFlush)) return errno = error_or(EIO), -1;
  return static_cast<int>(syscall(SYS_fsync, fd));
}
int fdatasync(int fd) {
  if (fails(Kind::kFlush)) return errno = error_or(EIO), -1;
  return static_cast<int>(syscall(SYS_fdatasync, fd));
}
int rename(const char* from, const char* to) noexcept {
  if (fails(Kind::kRename)) return errno = error_or(EIO), -1;
  return static_cast<int>(syscall(SYS_rename, from, to));
}
// The first thing that main() does: what fails before it is none of the program's doing.
int sigaction(int number, const struct sigaction* action, struct sigaction* old) noexcept {
  static const auto kNext = next(&sigaction, "sigaction");
  const int result = kNext(number, action, old);
  if (number == SIGBUS && action != nullptr) kvfold::faults::arm_from_environment();
  return result;
}

}  // extern "C"
