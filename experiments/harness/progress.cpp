#include "experiments/harness/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>

#include "engine/printable.h"

namespace kvfold {
namespace {

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  return fmt::format("{} min {:02} s", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(std::string name, size_t total)
    : name_(std::move(name)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

void Progress::step(const std::string& what) {
  ++done_;
  constexpr size_t kWidth = 24;
  const size_t filled = kWidth * done_ / total_;
  const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double left = passed / static_cast<double>(done_) * static_cast<double>(total_ - done_);
  const std::string line =
      fmt::format("{} [{}{}] {}/{}, {} left: {}", name_, std::string(filled, '#'),
                  std::string(kWidth - filled, '.'), done_, total_, duration(left), one_line(what, 120));
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[K{}{}", line, done_ == total_ ? "\n" : "");
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

}  // namespace kvfold
