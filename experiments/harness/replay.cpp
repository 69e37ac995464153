#include "experiments/harness/replay.h"

#include <fmt/core.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/file.h"
#include "engine/kv/cache_file.h"

namespace kvfold {
namespace {

using nlohmann::json;

Status write_json(const std::string& path, const json& value) {
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(file.write(value.dump()));
  return file.commit();
}

Result<json> read_json(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  json value = json::parse(text, nullptr, false);
  if (value.is_discarded()) return Status::error(path + ": expected JSON");
  return value;
}

// Runs this executable with `--replay path` and waits for it.
Status run_self(const std::string& path) {
  const pid_t child = fork();
  if (child < 0) return Status::error(fmt::format("cannot start a process: {}", std::strerror(errno)));
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a run that is killed leaves no process behind
    execl("/proc/self/exe", "kvfold-replay", "--replay", path.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      return Status::error(fmt::format("cannot wait for a process: {}", std::strerror(errno)));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return Status::error("same-cache: the process that loads the caches failed");
}

}  // namespace

Result<std::vector<Continuation>> replay_elsewhere(const ReplayOptions& options,
                                                   const std::vector<ReplayJob>& jobs,
                                                   const std::string& folder) {
  json request = {{"model", options.model},
                  {"quantize", options.quantize},
                  {"exact", options.exact},
                  {"threads", options.threads},
                  {"count", options.count},
                  {"jobs", json::array()},
                  {"answers", folder + "/answers.json"}};
  for (const ReplayJob& job : jobs)
    request["jobs"].push_back({{"cache", job.cache_path}, {"token", job.token}});
  const std::string path = folder + "/jobs.json";
  KVFOLD_RETURN_IF_ERROR(write_json(path, request));
  KVFOLD_RETURN_IF_ERROR(run_self(path));
  KVFOLD_ASSIGN_OR_RETURN(const json answers, read_json(request["answers"].get<std::string>()));
  std::vector<Continuation> out;
  for (const json& answer : answers)
    out.push_back({answer.at("ids").get<std::vector<TokenId>>(), answer.at("ended").get<bool>(),
                   answer.at("stalled").get<bool>(),
                   answer.at("log_probabilities").get<std::vector<double>>(),
                   answer.at("hashes").get<std::vector<uint64_t>>()});
  return out;
}

Status run_replay(const std::string& jobs_path) {
  KVFOLD_ASSIGN_OR_RETURN(const json request, read_json(jobs_path));
  OpenOptions options;
  KVFOLD_ASSIGN_OR_RETURN(options.quantization,
                          Quantization::parse(request.at("quantize").get<std::string>()));
  options.cpu.threads = request.at("threads").get<int>();
  options.cpu.precision = request.at("exact").get<bool>() ? Precision::kExact : Precision::kInt8;
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                          open_session(request.at("model").get<std::string>(), options));
  const Model& model = session->model();
  std::vector<Start> starts;
  for (const json& job : request.at("jobs")) {
    KVFOLD_ASSIGN_OR_RETURN(KvCache cache,
                            load_cache(job.at("cache").get<std::string>(), cache_model_info(model.source()),
                                       model.cache_shape(), session->pool()));
    starts.push_back({std::move(cache), job.at("token").get<TokenId>()});
  }
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<Continuation> continued,
                          continue_greedily(*session, starts, request.at("count").get<int>()));
  json answers = json::array();
  for (const Continuation& c : continued)
    answers.push_back({{"ids", c.ids},
                       {"ended", c.ended},
                       {"stalled", c.stalled},
                       {"log_probabilities", c.log_probabilities},
                       {"hashes", c.hashes}});
  return write_json(request.at("answers").get<std::string>(), answers);
}

}  // namespace kvfold
