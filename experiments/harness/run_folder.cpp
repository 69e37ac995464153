#include "experiments/harness/run_folder.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "engine/file.h"

namespace kvfold {
namespace {

Status system_error(const std::string& path, const char* what) {
  return Status::error(fmt::format("{}: cannot {}: {}", path, what, std::strerror(errno)));
}

std::string utc_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &parts);
  return text;
}

}  // namespace

RunFolder::RunFolder(std::string path, int trials)
    : path_(std::move(path)), scratch_(path_ + "/scratch"), trials_(trials) {}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)),
      scratch_(std::exchange(other.scratch_, {})),
      trials_(std::exchange(other.trials_, -1)) {}

RunFolder::~RunFolder() {
  if (trials_ >= 0) ::close(trials_);
  std::error_code ignored;
  if (!scratch_.empty()) std::filesystem::remove_all(scratch_, ignored);
}

Result<RunFolder> RunFolder::create(const std::string& parent, const std::string& phase) {
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  const std::string base = fmt::format("{}/{}-{}", parent, phase, utc_time());
  std::string path = base;
  for (int n = 2; ::mkdir(path.c_str(), 0777) != 0; ++n) {
    if (errno != EEXIST || n > 1000) return system_error(path, "make the folder");
    path = fmt::format("{}-{}", base, n);
  }
  const std::string trials = path + "/trials.jsonl";
  const int fd = ::open(trials.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) return system_error(trials, "create");
  RunFolder folder(path, fd);
  if (::mkdir(folder.scratch().c_str(), 0777) != 0) return system_error(folder.scratch(), "make the folder");
  return folder;
}

Status RunFolder::write_manifest(const nlohmann::ordered_json& manifest) const {
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path_ + "/manifest.json"));
  KVFOLD_RETURN_IF_ERROR(
      file.write(manifest.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"));
  return file.commit();
}

Status RunFolder::append(const nlohmann::ordered_json& record) {
  const std::string line =
      record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = ::write(trials_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(path_ + "/trials.jsonl", "write");
    rest.remove_prefix(static_cast<size_t>(n));
  }
  if (fdatasync(trials_) != 0) return system_error(path_ + "/trials.jsonl", "flush");
  return {};
}

}  // namespace kvfold
