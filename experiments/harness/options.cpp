#include "experiments/harness/options.h"

#include <fmt/core.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstdio>
#include <ctime>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "engine/printable.h"
#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/utf8.h"
#include "experiments/backend_options.h"
#include "experiments/last_words.h"
#include "experiments/say.h"

namespace kvfold {
namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

// XXH3-64 of this program's file: another build may measure otherwise.
std::string program_hash() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

nlohmann::ordered_json machine() {
  utsname system{};
  uname(&system);
  return {{"cpu", cpu_name()},
          {"cores", std::thread::hardware_concurrency()},
          {"memory_bytes", static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE)},
          {"system", fmt::format("{} {} {}", system.sysname, system.release, system.machine)}};
}

}  // namespace

void add_options(CLI::App& app, DriverOptions& options) {
  app.add_option("--model", options.model,
                 "a GGUF file, a checkpoint's folder, or a name of weights/models.json")
      ->capture_default_str();
  app.add_option("--runs", options.runs, "the folder in which the run's own is made")->capture_default_str();
  app.add_option("--prompts", options.prompts, "the prompt set (default: the project's own)");
  app.add_option("--framings", options.framings, "of raw, qa, chat, system, with commas")
      ->capture_default_str();
  add_backend_options(app, options.backend, options.device);
  app.add_option("--threads", options.threads, "threads (default: one for every CPU allowed)")
      ->check(CLI::Range(1, 1024));
  app.add_option("-n", options.count, "most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--limit", options.limit, "most trials of each family")->check(CLI::Range(1, 1 << 20));
  app.add_option("--seed", options.seed, "seed of the noise")->capture_default_str();
  app.add_option("--quantize", options.quantize,
                 "bring the matrices to q4_0, q4_1, q8_0 or q4_k as they are loaded; none: as stored")
      ->capture_default_str();
  app.add_flag("--exact", options.exact, "f32 activations instead of int8 blocks");
  app.add_flag("--new", options.fresh, "start a new run even where an unfinished one could be gone on with");
  app.add_option("--replay", options.replay, "")->group("");
}

int run_program(int argc, char** argv, CLI::App& app, DriverOptions& options,
                const std::function<Status()>& body) {
  prepare_last_words();
  options.command.assign(argv, argv + argc);
  try {
    for (const std::string& argument : options.command)
      if (utf8_valid_prefix(argument) != argument.size())
        return fail(fmt::format("{}: found an argument that is no UTF-8, expected UTF-8, as manifests are",
                                argument));
    app.parse(argc, argv);
    const Status status = body();
    return status.ok() ? 0 : fail(status.message());
  } catch (const CLI::ParseError& error) {
    return error.get_exit_code() == 0 ? app.exit(error) : fail(error.what(), kMostParserLine);
  } catch (const std::bad_alloc&) {
    return fail_for_memory();
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}

Result<std::unique_ptr<Session>> open_session(const DriverOptions& options) {
  OpenOptions open;
  open.backend = options.backend;
  open.device = options.device;
  KVFOLD_ASSIGN_OR_RETURN(open.quantization, Quantization::parse(options.quantize));
  open.notice = [](const std::string& line) { say(line); };
  open.cpu.threads = options.threads;
  open.cpu.precision = options.exact ? Precision::kExact : Precision::kInt8;
  return open_session(options.model, open);
}

Status weights_unchanged(const Session& session) {
  const ModelSource& source = session.model().source();
  return source.unchanged ? source.unchanged() : Status{};
}

Result<std::vector<Framing>> parse_framings(const std::string& list) {
  std::vector<Framing> out;
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    KVFOLD_ASSIGN_OR_RETURN(const Framing framing, parse_framing(word));
    if (std::find(out.begin(), out.end(), framing) != out.end())
      return Status::error(fmt::format("framings '{}': {} is named twice", printable(list), word));
    out.push_back(framing);
  }
  if (out.empty()) return Status::error("framings: expected at least one of raw, qa, chat, system");
  return out;
}

Status check_framings(std::span<const Framing> framings, const DriverOptions& options,
                      const Session& session) {
  for (const Framing framing : framings) {
    if (framing == Framing::kRaw || framing == Framing::kQa) continue;
    const Status status = ChatTemplate::from(session.tokenizer().source()).status();
    if (!status.ok())
      return Status::error(fmt::format("{}: framing {}: {}; --framings raw,qa needs none", options.model,
                                       framing_name(framing), status.message()));
  }
  return {};
}

std::string prompt_set_path(const std::string& name) {
  return KVFOLD_SOURCE_DIR "/experiments/prompts/" + name + ".jsonl";
}

std::string corpus_path(const std::string& file) {
  return KVFOLD_SOURCE_DIR "/weights/cache/projector/" + file;
}

std::vector<const Trial*> choose_trials(const PromptSet& set, bool plan, bool families, int limit) {
  std::vector<const Trial*> out;
  // A limit takes as many of either half.
  std::map<std::string, int> taken;
  for (const Trial& trial : set.trials) {
    const bool of_plan = trial.set == "plan";
    if (of_plan ? !plan : !families) continue;
    const int most = trial.set == "calibration" ? limit / 2 : limit - limit / 2;
    if (!of_plan && limit > 0 && taken[trial.family + "/" + trial.set]++ >= most) continue;
    out.push_back(&trial);
  }
  return out;
}

nlohmann::ordered_json describe_run(const Session& session, const DriverOptions& options) {
  const ModelSource& source = session.model().source();
  return {{"model", options.model},
          {"model_path", source.path},
          {"model_name", source.config.name},
          {"model_fingerprint", source.fingerprint},
          {"backend", session.model().backend().name()},
          {"quantize", options.quantize},
          {"precision", options.exact ? "exact" : "int8"},
          {"cache_type", "f16"},
          {"tokens", options.count},
          {"seed", options.seed},
          {"decoding", "greedy"},
          {"build", KVFOLD_BUILD},
          {"program_xxh3", program_hash()},
          {"command", options.command},
          {"machine", machine()}};
}

std::string run_identity(const nlohmann::ordered_json& description, const nlohmann::ordered_json& what) {
  nlohmann::ordered_json decides = what;
  for (const char* key : {"model_fingerprint", "precision", "cache_type", "tokens", "seed", "program_xxh3"})
    decides[key] = description.at(key);
  const std::string text = decides.dump();
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
}

nlohmann::ordered_json make_manifest(const nlohmann::ordered_json& what,
                                     const nlohmann::ordered_json& description, const RunFolder& folder) {
  nlohmann::ordered_json manifest = what;
  manifest.update(description);
  manifest["insertion"] = "start/follow";
  manifest["checks"] = {{"same-cache", nullptr}, {"text", nullptr}};
  manifest["thresholds"] = nullptr;
  const nlohmann::json& old = folder.old_manifest();
  const bool counted = folder.resumed() && old.contains("resumed") && old["resumed"].is_number_unsigned();
  const bool dated = folder.resumed() && old.contains("started") && old["started"].is_string();
  manifest["started"] = dated ? old["started"].get<std::string>() : utc_now();
  manifest["finished"] = nullptr;
  manifest["complete"] = false;
  manifest["resumed"] = (counted ? old["resumed"].get<uint64_t>() : 0) + (folder.resumed() ? 1 : 0);
  return manifest;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace kvfold
