#include "experiments/harness/run_folder.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <new>

#include "engine/file.h"
#include "engine/strict_json.h"

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

// The manifest of a run that this identity could go on with; null if there is none.
nlohmann::json unfinished_manifest(const std::string& folder, const std::string& identity) {
  const Result<std::string> text = read_text_file(folder + "/manifest.json");
  if (!text.ok()) return nullptr;
  Result<nlohmann::json> manifest = parse_json(*text);
  // Compared as JSON, so that a value of any type is an answer.
  if (!manifest.ok() || !manifest->is_object() || manifest->value("complete", nlohmann::json()) != false ||
      manifest->value("identity", nlohmann::json()) != identity)
    return nullptr;
  return std::move(*manifest);
}

// A lock that is held until the descriptor is closed, -1 if another process has it.
Result<int> lock_folder(const std::string& folder) {
  const std::string path = folder + "/lock";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return system_error(path, "create");
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  return -1;
}

}  // namespace

RunFolder::RunFolder(std::string path, int lock, std::string identity)
    : path_(std::move(path)), scratch_(path_ + "/scratch"), identity_(std::move(identity)), lock_(lock) {}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)),
      scratch_(std::exchange(other.scratch_, {})),
      identity_(std::move(other.identity_)),
      old_manifest_(std::move(other.old_manifest_)),
      resumed_(other.resumed_),
      records_path_(std::move(other.records_path_)),
      records_(std::exchange(other.records_, -1)),
      lock_(std::exchange(other.lock_, -1)) {}

RunFolder::~RunFolder() {
  try {
    std::error_code ignored;
    if (!scratch_.empty()) std::filesystem::remove_all(scratch_, ignored);
    if (lock_ >= 0) std::filesystem::remove(path_ + "/lock", ignored);
  } catch (const std::bad_alloc&) {  // what is left behind is in nobody's way
  }
  if (records_ >= 0) ::close(records_);
  if (lock_ >= 0) ::close(lock_);
}

Status RunFolder::make_scratch() const {
  std::error_code ignored;
  std::filesystem::remove_all(scratch_, ignored);
  if (::mkdir(scratch_.c_str(), 0777) != 0) return system_error(scratch_, "make the folder");
  return {};
}

// A folder without a manifest is the answer "none": its path is empty.
Result<RunFolder> RunFolder::find(const std::string& parent, const std::string& phase,
                                  const std::string& identity) {
  std::vector<std::string> folders;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(parent, error))
    if (entry.path().filename().string().starts_with(phase + "-")) folders.push_back(entry.path().string());
  std::sort(folders.rbegin(), folders.rend());
  for (const std::string& path : folders) {
    if (unfinished_manifest(path, identity).is_null()) continue;
    KVFOLD_ASSIGN_OR_RETURN(const int lock, lock_folder(path));
    if (lock < 0)
      return Status::error(path + ": another process is at work on this run; --new starts a run of its own");
    RunFolder folder(path, lock, identity);
    folder.old_manifest_ = unfinished_manifest(path, identity);  // again, now that nobody else can change it
    folder.resumed_ = !folder.old_manifest_.is_null();
    if (folder.resumed_) return folder;
  }
  return RunFolder("", -1, identity);
}

Result<RunFolder> RunFolder::create(const std::string& parent, const std::string& phase,
                                    const std::string& identity) {
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  const std::string base = fmt::format("{}/{}-{}", parent, phase, utc_time());
  std::string path = base;
  for (int n = 2; ::mkdir(path.c_str(), 0777) != 0; ++n) {
    if (errno != EEXIST || n > 1000) return system_error(path, "make the folder");
    path = fmt::format("{}-{}", base, n);
  }
  KVFOLD_ASSIGN_OR_RETURN(const int lock, lock_folder(path));
  if (lock < 0) return Status::error(path + ": another process is at work on this run");
  return RunFolder(path, lock, identity);
}

Result<RunFolder> RunFolder::open(const std::string& parent, const std::string& phase,
                                  const std::string& identity, bool fresh) {
  if (!fresh) {
    KVFOLD_ASSIGN_OR_RETURN(RunFolder found, find(parent, phase, identity));
    if (found.resumed_) {
      KVFOLD_RETURN_IF_ERROR(found.make_scratch());
      return found;
    }
    found.scratch_.clear();
  }
  KVFOLD_ASSIGN_OR_RETURN(RunFolder made, create(parent, phase, identity));
  KVFOLD_RETURN_IF_ERROR(made.make_scratch());
  return made;
}

Status RunFolder::write_manifest(nlohmann::ordered_json manifest) const {
  manifest["identity"] = identity_;
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path_ + "/manifest.json"));
  KVFOLD_RETURN_IF_ERROR(
      file.write(manifest.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"));
  return file.commit();
}

Result<std::set<std::string>> RunFolder::open_records(
    const std::string& file, const std::set<std::string>& groups,
    const std::function<Group(const nlohmann::json&)>& group_of) {
  records_path_ = path_ + "/" + file;
  records_ = ::open(records_path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (records_ < 0) return system_error(records_path_, "open");
  std::set<std::string> whole;
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, read_text_file(records_path_));
  size_t kept = 0;
  std::string group;
  int64_t count = 0;
  for (size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const Result<nlohmann::json> record = parse_json(std::string_view(text).substr(begin, end - begin));
    Group next;
    try {
      if (record.ok() && record->is_object()) next = group_of(*record);
    } catch (const nlohmann::json::exception&) {  // a value of another type: no record of ours
    }
    if (next.lines < 1 || !groups.contains(next.name) || whole.contains(next.name)) break;
    if (count > 0 && next.name != group) break;
    group = next.name;
    if (++count < next.lines) continue;
    whole.insert(group);
    kept = end + 1;
    count = 0;
  }
  if (kept < text.size() && ::ftruncate(records_, static_cast<off_t>(kept)) != 0)
    return system_error(records_path_, "cut");
  return whole;
}

Status RunFolder::append(std::span<const nlohmann::ordered_json> records) {
  std::string lines;
  for (const nlohmann::ordered_json& record : records)
    lines += record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  std::string_view rest = lines;
  while (!rest.empty()) {
    const ssize_t n = ::write(records_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(records_path_, "write");
    rest.remove_prefix(static_cast<size_t>(n));
  }
  if (fdatasync(records_) != 0) return system_error(records_path_, "flush");
  return {};
}

}  // namespace kvfold
