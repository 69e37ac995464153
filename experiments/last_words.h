// What programs do when a file that they have mapped is cut short under them, and when memory runs out.
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include "engine/file.h"

namespace kvfold {

// Says so without asking for memory. The program's exit status.
inline int fail_for_memory() {
  constexpr char kLine[] = "kvfold: not enough memory\n";
  return ::write(STDERR_FILENO, kLine, sizeof kLine - 1) < 0 ? 3 : 2;
}

// Memory may run out where no exception can leave: in destructors of nlohmann::json, which ask for some.
[[noreturn]] inline void on_terminate() {
  try {
    if (const std::exception_ptr last = std::current_exception()) std::rethrow_exception(last);
  } catch (const std::bad_alloc&) {
    remove_temporary_files();
    _exit(fail_for_memory());
  } catch (...) {  // a bug: the abort below leaves a core
  }
  std::abort();
}

inline void on_bus_error(int, siginfo_t* info, void*) {
  const char* path = mapped_path(info->si_addr);
  if (path == nullptr) {  // no file: a broken machine, and the system's own message for it
    std::signal(SIGBUS, SIG_DFL);
    return;
  }
  remove_temporary_files();
  for (const char* part : {"kvfold: ", path, ": the file was cut short while it was being read\n"})
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  _exit(2);
}

// From now on both end the program with one line on stderr and exit status 2, without a temporary file left.
inline void prepare_last_words() {
  std::set_terminate(on_terminate);
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace kvfold
