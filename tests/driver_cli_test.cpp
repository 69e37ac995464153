// The experiments' drivers as a user meets them: every condition is recorded, and a run that was stopped goes
// on to the same bytes.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <map>

#include "tests/cli_fixture.h"

namespace kvfold::testing {
namespace {

class Driver : public Cli {
 protected:
  // trials.jsonl of every run in a folder.
  std::string all_records(const std::string& runs) const {
    std::string out;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.file(runs)))
      out += TemporaryFolder::read(entry.path() / "trials.jsonl");
    return out;
  }
};

TEST_F(Driver, DriverRecordsEveryCondition) {
  const Ran ran = run("run_2a --model tiny.gguf -n 6 --runs out_runs");
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_NE(ran.out.find("transfer"), std::string::npos);
  EXPECT_EQ(ran.out.find('\x1b'), std::string::npos) << "colour without a terminal";
  std::istringstream lines(all_records("out_runs"));
  std::map<std::string, int> conditions;
  for (std::string line; std::getline(lines, line);) {
    const auto trial = nlohmann::json::parse(line);
    for (const char* key :
         {"phase", "trial", "framing", "condition", "source", "target", "output", "markers"})
      EXPECT_TRUE(trial.contains(key)) << key;
    ++conditions[trial.at("condition").get<std::string>()];
  }
  EXPECT_EQ(conditions.size(), 12U);
  for (const auto& [name, count] : conditions) EXPECT_EQ(count, 4) << name;
}

// The first lines of a prompt set, so that a run is short.
std::string small_set(const std::string& path, int lines) {
  std::istringstream in(TemporaryFolder::read(path));
  std::vector<nlohmann::json> trials;
  for (std::string line; std::getline(in, line) && static_cast<int>(trials.size()) < lines;)
    trials.push_back(nlohmann::json::parse(line));
  std::string out;
  for (size_t i = 0; i < trials.size(); ++i) {
    trials[i]["mismatched"] = trials[(i + 1) % trials.size()]["id"];
    out += trials[i].dump() + "\n";
  }
  return out;
}

// The plan's case is held against the sources of both halves, but for those that state its own fact.
TEST_F(Driver, PlanCaseIsScoredUnderAllOtherSources) {
  std::string set = small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 5);
  std::vector<nlohmann::json> trials;
  std::istringstream in(set);
  for (std::string line; std::getline(in, line);) trials.push_back(nlohmann::json::parse(line));
  trials[1]["set"] = "test";
  trials[2]["source"] = "I am called LYRA";
  set.clear();
  for (const nlohmann::json& trial : trials) set += trial.dump() + "\n";
  folder_.write("set.jsonl", set);
  ASSERT_EQ(
      run("run_2a --model tiny.gguf -n 2 --framings raw --family --limit 1 --prompts set.jsonl --runs runs")
          .status,
      0);
  std::istringstream lines(all_records("runs"));
  int plan = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto trial = nlohmann::json::parse(line);
    if (trial.at("set") != "plan" || trial.at("condition") != "transfer") {
      EXPECT_TRUE(trial.at("permuted_uplifts").is_null()) << trial.at("trial") << trial.at("condition");
      continue;
    }
    EXPECT_EQ(trial.at("permuted_uplifts").size(), 3U) << "one of the test half, two of calibration's three";
    ++plan;
  }
  EXPECT_EQ(plan, 1);
}

TEST_F(Driver, InterruptedRunGoesOnToTheSameRecords) {
  folder_.write("set.jsonl", small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 3));
  const std::string command =
      "run_2a --model tiny.gguf -n 2 --framings raw,qa --family --prompts set.jsonl --runs ";
  ASSERT_EQ(run(command + "whole").status, 0);
  const std::string whole = all_records("whole");
  ASSERT_EQ(std::count(whole.begin(), whole.end(), '\n'), 3 * 2 * 12);

  // What a process leaves that is killed: an unfinished manifest, and records that end anywhere.
  for (const double share : {0.0, 0.45, 0.9}) {
    std::filesystem::remove_all(folder_.file("cut"));
    std::filesystem::copy(folder_.file("whole"), folder_.file("cut"),
                          std::filesystem::copy_options::recursive);
    const std::filesystem::path run_folder = std::filesystem::directory_iterator(folder_.file("cut"))->path();
    auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(run_folder / "manifest.json"));
    EXPECT_EQ(manifest.at("complete"), true);
    manifest["complete"] = false;
    std::ofstream(run_folder / "manifest.json") << manifest.dump();
    std::filesystem::resize_file(run_folder / "trials.jsonl",
                                 static_cast<uintmax_t>(share * static_cast<double>(whole.size())));
    const Ran ran = run(command + "cut");
    ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_NE(ran.err.find("going on"), std::string::npos);
    EXPECT_EQ(all_records("cut"), whole) << share;
  }
  // A finished run is not gone on with, nor one of another command.
  EXPECT_EQ(run(command + "whole").err.find("going on"), std::string::npos);
}

// Records that somebody else wrote, or that stand there twice, are cut off and made anew; those that pass for
// whole but lack what the table needs are refused by the file's name.
TEST_F(Driver, ForeignRecordsDoNotCount) {
  folder_.write("set.jsonl", small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 2));
  const std::string command =
      "run_2a --model tiny.gguf -n 2 --framings raw --family --prompts set.jsonl --runs runs";
  ASSERT_EQ(run(command).status, 0);
  const std::string whole = all_records("runs");
  const std::filesystem::path run_folder = std::filesystem::directory_iterator(folder_.file("runs"))->path();
  const auto go_on_with = [&](const std::string& records) {
    auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(run_folder / "manifest.json"));
    manifest["complete"] = false;
    std::ofstream(run_folder / "manifest.json") << manifest.dump();
    std::ofstream(run_folder / "trials.jsonl") << records;
    return run(command);
  };
  std::string foreign;
  for (int i = 0; i < 24; ++i) foreign += "{\"trial\":\"another" + std::to_string(i / 12) + "\"}\n";
  for (const std::string& records :
       {foreign, whole + whole, whole + "{\"trial\":5}\n", std::string("{\0}\n", 4)}) {
    const Ran ran = go_on_with(records);
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(all_records("runs"), whole);
  }
  const std::string id = nlohmann::json::parse(whole.substr(0, whole.find('\n'))).at("trial");
  std::string hollow;
  for (int i = 0; i < 12; ++i) hollow += "{\"trial\":\"" + id + "\",\"set\":\"plan\"}\n";
  const Ran ran = go_on_with(hollow);
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("trials.jsonl: found records that are not of a run"), std::string::npos) << ran.err;
}

// Whatever an argument holds, a message shows of it what can be printed, and no more of it than can be read.
TEST_F(Driver, ForeignArgumentsAreShownInOneShortPrintableLine) {
  Ran ran = run("run_2a --model tiny.gguf --framings \"raw,$(printf '\\033[31m\\007\\302\\233')\"");
  EXPECT_EQ(ran.status, 2);
  EXPECT_EQ(ran.err, "kvfold: framing '?[31m?\?\?': expected raw, qa, chat or system\n");
  ran = run("run_2a --threads \"$(printf '%0100000d' 0)\"");
  EXPECT_EQ(ran.status, 2);
  EXPECT_LT(ran.err.size(), 600U);
}

TEST_F(Driver, ArgumentsThatNoManifestCanHoldAreRefusedFirst) {
  const Ran ran = run("run_2a --model tiny.gguf -n 2 --framings raw --runs $(printf '\\377')");
  EXPECT_EQ(ran.status, 2);
  EXPECT_EQ(ran.err, "kvfold: ?: found an argument that is no UTF-8, expected UTF-8, as manifests are\n");
}

TEST_F(Driver, QuantizedModelIsAnotherModel) {
  const auto manifest = [&](const std::string& runs) {
    const std::filesystem::path run_folder = std::filesystem::directory_iterator(folder_.file(runs))->path();
    return nlohmann::json::parse(TemporaryFolder::read(run_folder / "manifest.json"));
  };
  const std::string command = "run_2a --model tiny.gguf -n 2 --framings raw --runs ";
  ASSERT_EQ(run(command + "stored").status, 0);
  const Ran ran = run(command + "eight --quantize q8_0");  // same-cache, too, in the process that loads it
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(manifest("stored").at("quantize"), "none");
  EXPECT_EQ(manifest("eight").at("quantize"), "q8_0");
  EXPECT_NE(manifest("eight").at("model_fingerprint"), manifest("stored").at("model_fingerprint"));
  EXPECT_NE(all_records("eight"), all_records("stored"));
  EXPECT_EQ(run(command + "none --quantize q3").status, 2);
}

// Another program may measure otherwise: what it finds unfinished is not its own to go on with.
TEST_F(Driver, AnotherProgramBeginsAnew) {
  folder_.write("set.jsonl", small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 2));
  const std::string arguments = " --model tiny.gguf -n 2 --framings raw --prompts set.jsonl --runs runs";
  ASSERT_EQ(run("run_2a" + arguments).status, 0);
  const std::filesystem::path file =
      std::filesystem::directory_iterator(folder_.file("runs"))->path() / "manifest.json";
  auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(file));
  manifest["complete"] = false;
  std::ofstream(file) << manifest.dump();
  std::filesystem::copy_file(KVFOLD_PROGRAMS "/run_2a", folder_.file("other"));
  std::ofstream(folder_.file("other"), std::ios::app) << "another build";
  const std::string command = "cd '" + folder_.file("") + "' && ./other" + arguments + " >/dev/null 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0);
  const auto runs = std::filesystem::directory_iterator(folder_.file("runs"));
  EXPECT_EQ(std::distance(begin(runs), end(runs)), 2);
  ASSERT_EQ(run("run_2a" + arguments).status, 0);
  EXPECT_EQ(nlohmann::ordered_json::parse(TemporaryFolder::read(file)).at("resumed"), 1);
}

// So with statements: a run of signatures is of the prompts that stood in the file, not of the file's name.
TEST_F(Driver, SignaturesOfOtherPromptsBeginAnew) {
  const auto prompt = [](const char* id, const char* text) {
    return nlohmann::json{{"id", id},    {"kind", "grounded"}, {"template", "t"},
                          {"pair", "p"}, {"set", "test"},      {"text", text}}
               .dump() +
           "\n";
  };
  const std::string command = "run_signatures --model tiny.gguf --prompts set.jsonl --runs runs";
  folder_.write("set.jsonl", prompt("a", "one two three") + prompt("b", "four five six"));
  ASSERT_EQ(run(command).status, 0);
  const std::filesystem::path file =
      std::filesystem::directory_iterator(folder_.file("runs"))->path() / "manifest.json";
  auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(file));
  manifest["complete"] = false;
  std::ofstream(file) << manifest.dump();
  folder_.write("set.jsonl", prompt("a", "seven eight nine") + prompt("b", "four five six"));
  ASSERT_EQ(run(command).status, 0);
  const auto runs = std::filesystem::directory_iterator(folder_.file("runs"));
  EXPECT_EQ(std::distance(begin(runs), end(runs)), 2);
}

TEST_F(Driver, KilledRunGoesOnToTheSameRecords) {
  folder_.write("set.jsonl", small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 3));
  const std::string command =
      "run_2a --model tiny.gguf -n 2 --framings raw --family --prompts set.jsonl --runs ";
  const double seconds = seconds_of(command + "whole");
  // One that is killed behind its last record is done, and another run would begin anew.
  const auto done = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(folder_.file("cut"))) {
      const std::string manifest = TemporaryFolder::read(entry.path() / "manifest.json");
      if (!manifest.empty() && nlohmann::json::parse(manifest).at("complete") == true) return true;
    }
    return false;
  };
  std::filesystem::create_directory(folder_.file("cut"));
  for (const double part : {0.2, 0.4, 0.6, 0.8})
    if (!done()) ends_within(part * seconds, command + "cut");
  if (!done()) {
    ASSERT_EQ(run(command + "cut").status, 0);
  }
  EXPECT_EQ(all_records("cut"), all_records("whole"));
}

TEST_F(Driver, AModelWithoutATemplateIsRefusedBeforeThereIsARun) {
  GgufWriter writer = tiny_model();
  writer.remove("tokenizer.chat_template");
  folder_.write("bare.gguf", writer.build());
  for (const char* program : {"run_2a", "run_components --framings chat"}) {
    const Ran ran = run(std::string(program) + " --model bare.gguf --runs none");
    EXPECT_EQ(ran.status, 2);
    EXPECT_NE(ran.err.find("bare.gguf: framing chat: the model has no chat template"), std::string::npos)
        << ran.err;
    EXPECT_NE(ran.err.find("--framings raw,qa"), std::string::npos) << ran.err;
    EXPECT_FALSE(std::filesystem::exists(folder_.file("none")));
  }
}

TEST_F(Driver, RunInUseIsLeftAlone) {
  folder_.write("set.jsonl", small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 2));
  const std::string command = "run_2a --model tiny.gguf -n 2 --framings raw --prompts set.jsonl --runs held";
  ASSERT_EQ(run(command).status, 0);
  const std::filesystem::path run_folder = std::filesystem::directory_iterator(folder_.file("held"))->path();
  auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(run_folder / "manifest.json"));
  manifest["complete"] = false;
  std::ofstream(run_folder / "manifest.json") << manifest.dump();
  const int fd = ::open((run_folder / "lock").c_str(), O_RDWR | O_CREAT, 0666);
  ASSERT_EQ(::flock(fd, LOCK_EX | LOCK_NB), 0);
  const Ran ran = run(command);
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("another process"), std::string::npos) << ran.err;
  EXPECT_EQ(run(command + " --new").status, 0);
  ::close(fd);
}

// The report compares all positions with the first point of this series (summary.py, POSITION_REFERENCE).
TEST_F(Driver, PositionsBeginWithTheTwoTextsInTurn) {
  ASSERT_EQ(run("run_position --model tiny.gguf --framings raw --limit 1 --runs positions").status, 0);
  std::istringstream lines(all_records("positions"));
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    if (record.at("condition") != "transfer") continue;
    EXPECT_EQ(record.at("point"), "start:0/follow/fed");
    EXPECT_EQ(record.at("series"), "follow/fed");
    EXPECT_EQ(record.at("x"), 0.0);
    return;
  }
  FAIL() << "no transfer";
}

TEST_F(Driver, SweepGoesOnToTheSameRecords) {
  std::string set = small_set(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl", 3);
  const std::string command = "run_components --model tiny.gguf --prompts set.jsonl --runs ";
  folder_.write("set.jsonl", set);
  EXPECT_NE(run(command + "none").err.find("no trial"), std::string::npos) << "of calibration";
  const std::string calibration = R"("set":"calibration")";
  for (size_t at = 0; (at = set.find(calibration)) != std::string::npos;)
    set.replace(at, calibration.size(), R"("set":"test")");
  folder_.write("set.jsonl", set);
  const Ran first = run(command + "whole");
  ASSERT_EQ(first.status, 0) << first.err;
  const std::string whole = all_records("whole");
  ASSERT_NE(whole, "");
  const std::filesystem::path run_folder = std::filesystem::directory_iterator(folder_.file("whole"))->path();
  auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(run_folder / "manifest.json"));
  manifest["complete"] = false;
  std::ofstream(run_folder / "manifest.json") << manifest.dump();
  std::filesystem::resize_file(run_folder / "trials.jsonl", whole.size() * 3 / 5);
  const Ran ran = run(command + "whole");
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_NE(ran.err.find("going on, 1 of 2"), std::string::npos) << ran.err;
  EXPECT_EQ(all_records("whole"), whole);
}

}  // namespace
}  // namespace kvfold::testing
