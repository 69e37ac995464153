// Programs whose Nth allocation, open, read, mmap, write, fsync or rename fails, once or from then on: exit 0
// or exit 2 with one line, no half-written file, and a run that is gone on with afterwards ends in the same
// records. A file that is cut short while it is mapped; a disk that is full; processes that are killed at any
// moment.
//
// By default a sample of N; KVFOLD_EVERY_FAULT=1 takes every N (for allocations, every 20th), and
// KVFOLD_KILLS=1000 kills so many processes (make test-faults).
#include <fmt/core.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <random>

#include "engine/random.h"
#include "tests/cli_fixture.h"
#include "tests/faults/faults.h"

namespace kvfold::testing {
namespace {

class FaultsCli : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    std::ifstream lines(KVFOLD_SOURCE_DIR "/experiments/prompts/2a.jsonl");
    std::string set, line;
    // The plan's case and two of the family, each the other's unrelated one.
    for (const char* id : {"a", "b", "c"}) {
      std::getline(lines, line);
      auto trial = nlohmann::ordered_json::parse(line);
      trial["id"] = id;
      trial["mismatched"] = *id == 'a' ? "b" : "a";
      trial["set"] = *id == 'a' ? "plan" : "test";
      set += trial.dump() + "\n";
    }
    folder_.write("set.jsonl", set);
  }

  // `arguments` of a program under a fault; whether it struck.
  Ran run_with_fault(const std::string& arguments, const std::string& kind, int64_t n, const char* how,
                     bool& struck) {
    const std::string flag = folder_.file("fired");
    std::filesystem::remove(flag);
    const Ran ran = run_in(fmt::format("KVFOLD_FAULT={}:{}:{} KVFOLD_FAULT_FIRED={} LD_PRELOAD={}", kind, n,
                                       how, flag, KVFOLD_FAULTS_LIBRARY),
                           arguments);
    struck = std::filesystem::exists(flag);
    std::filesystem::remove(flag);
    EXPECT_TRUE(ran.status == 0 || ran.status == 2)
        << kind << ":" << n << ":" << how << " " << ran.status << " " << ran.err;
    if (ran.status == 2) {
      // The program's own line is the last; a child's may stand before it.
      const std::string last = ran.err.substr(ran.err.rfind('\n', ran.err.size() - 2) + 1);
      EXPECT_TRUE(last.starts_with("kvfold: ")) << kind << ":" << n << ":" << how << " " << ran.err;
    }
    return ran;
  }

  // For the Ns of a kind until nothing strikes any more.
  void sweep(const std::string& arguments, const std::function<void(const Ran&)>& check) {
    const bool every = std::getenv("KVFOLD_EVERY_FAULT") != nullptr;
    for (const char* kind : faults::kKindNames)
      for (const char* how : {"once", "on"}) {
        const bool memory = std::string(kind) == "alloc";
        bool struck = true;
        for (int64_t n = 1; struck; n = every ? n + (memory ? 20 : 1) : n + 1 + n / (memory ? 1 : 3)) {
          const Ran ran = run_with_fault(arguments, kind, n, how, struck);
          check(ran);
          if (HasFailure()) FAIL() << kind << ":" << n << ":" << how;
        }
      }
  }

  std::string records(const std::string& runs) const {
    std::string all;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.file(runs)))
      all += TemporaryFolder::read(entry.path() / "trials.jsonl");
    return all;
  }
  // Whether a run under `runs` holds all records, and no other holds some of them. (One that was stopped
  // before its manifest was there holds none and is not gone on with; one that was stopped behind its last
  // record is whole.)
  bool all_or_none(const std::string& runs, const std::string& whole) const {
    bool found = false;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.file(runs))) {
      const std::string now = TemporaryFolder::read(entry.path() / "trials.jsonl");
      if (!now.empty() && now != whole) return false;
      found = found || now == whole;
    }
    return found;
  }
  Ran run_in(const std::string& environment, const std::string& arguments) const {
    const std::string command = "cd '" + folder_.file("") + "' && " + environment +
                                " '" KVFOLD_PROGRAMS "'/" + arguments + " >out 2>err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, TemporaryFolder::read(folder_.file("out")),
            TemporaryFolder::read(folder_.file("err"))};
  }

  const std::string run_2a_ =
      "run_2a --model tiny.gguf --threads 1 -n 2 --framings raw --family --prompts set.jsonl --runs ";
  const std::string save_ = "kvfold cache save tiny.gguf --threads 1 --text 'thin man' --out c.safetensors";
};

TEST_F(FaultsCli, SavingACache) {
  ASSERT_EQ(run(save_).status, 0);
  const std::string whole = TemporaryFolder::read(folder_.file("c.safetensors"));
  folder_.write("c.safetensors", "old");
  const size_t entries = folder_.entries();
  sweep(save_, [&](const Ran& ran) {
    const std::string now = TemporaryFolder::read(folder_.file("c.safetensors"));
    EXPECT_TRUE(now == whole || (now == "old" && ran.status == 2)) << ran.err;
    EXPECT_EQ(folder_.entries(), entries) << ran.err;
    folder_.write("c.safetensors", "old");
  });
}

TEST_F(FaultsCli, RunningAndGoingOn) {
  ASSERT_EQ(run(run_2a_ + "whole").status, 0);
  const std::string whole = records("whole");
  ASSERT_NE(whole, "");
  sweep(run_2a_ + "faulty", [&](const Ran& ran) {
    if (ran.status != 0) {
      const Ran again = run(run_2a_ + "faulty");
      ASSERT_EQ(again.status, 0) << again.err << " after " << ran.err;
    }
    EXPECT_TRUE(all_or_none("faulty", whole)) << ran.err;
    std::filesystem::remove_all(folder_.file("faulty"));
  });
}

// A run that was stopped half way goes on under faults, too, and harms no record that was there.
TEST_F(FaultsCli, GoingOnUnderFaults) {
  ASSERT_EQ(run(run_2a_ + "whole").status, 0);
  const std::string whole = records("whole");
  const std::filesystem::path done = std::filesystem::directory_iterator(folder_.file("whole"))->path();
  auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(done / "manifest.json"));
  manifest["complete"] = false;
  const size_t half = whole.find('\n', whole.size() / 2) + 1;
  const std::string run = "faulty/" + done.filename().string();
  sweep(run_2a_ + "faulty", [&](const Ran& ran) {
    const bool first = !std::filesystem::exists(folder_.file(run));
    if (!first && ran.err.find("going on") != std::string::npos) {
      const std::string now = TemporaryFolder::read(folder_.file(run + "/trials.jsonl"));
      // Whole trials stay; of the one that was half there the run cuts the rest and makes it anew.
      EXPECT_TRUE(whole.starts_with(now.substr(0, now.rfind('\n') + 1))) << ran.err;
      EXPECT_TRUE(ran.status != 0 || now == whole) << ran.err;
    }
    std::filesystem::remove_all(folder_.file("faulty"));
    std::filesystem::create_directories(folder_.file(run));
    folder_.write(run + "/manifest.json", manifest.dump());
    folder_.write(run + "/trials.jsonl", whole.substr(0, half));
  });
}

// Cut to nothing behind the program's back, just when it was mapped: a model, a cache, and a cache that is
// read to be written anew.
TEST_F(FaultsCli, FileCutShortWhileMapped) {
  ASSERT_EQ(run(save_).status, 0);
  const std::string cache = TemporaryFolder::read(folder_.file("c.safetensors"));
  const size_t entries = folder_.entries();
  const auto expect_message = [&](const std::string& file, const std::string& arguments) {
    const Ran ran = run_in("KVFOLD_FAULT_CUT=" + file + " LD_PRELOAD=" KVFOLD_FAULTS_LIBRARY, arguments);
    EXPECT_EQ(ran.status, 2);
    EXPECT_EQ(ran.err, "kvfold: " + file + ": the file was cut short while it was being read\n");
    EXPECT_EQ(folder_.entries(), entries);
  };
  expect_message("c.safetensors", "kvfold cache info c.safetensors");
  folder_.write("c.safetensors", cache);
  expect_message("c.safetensors", "kvfold cache truncate c.safetensors --rows 1 --out other.safetensors");
  expect_message("tiny.gguf", "kvfold info tiny.gguf");
}

// A file size limit stands for a full disk: the write that goes beyond it fails.
TEST_F(FaultsCli, DiskFull) {
  ASSERT_EQ(run(run_2a_ + "whole").status, 0);
  const std::string whole = records("whole");
  folder_.write("c.safetensors", "old");
  const size_t entries = folder_.entries();
  for (const int blocks : {1, 2, 4}) {  // of 512 bytes
    const std::string limited = fmt::format("ulimit -f {}; trap '' XFSZ;", blocks);
    // The shell's own redirections are not limited, as what they hold is short.
    const Ran ran = run_in(limited, save_);
    EXPECT_EQ(ran.status, 2) << blocks;
    EXPECT_TRUE(TemporaryFolder::read(folder_.file("c.safetensors")) == "old");
    const Ran record = run_in(limited, run_2a_ + "full");
    EXPECT_EQ(record.status, 2) << blocks << " " << record.err;
  }
  std::filesystem::remove_all(folder_.file("full"));
  EXPECT_EQ(folder_.entries(), entries);
}

// Killed at a random moment, again and again: files are the old or the new one, records whole, and the run
// ends as if nothing had been.
TEST_F(FaultsCli, KilledAtAnyMoment) {
  const char* kills = std::getenv("KVFOLD_KILLS");
  const int count = kills != nullptr ? std::atoi(kills) : 24;
  Random random(std::random_device{}());
  const auto killed = [&](const std::string& arguments, double seconds) {
    const double moment = seconds * static_cast<double>(random.below(1000)) / 1000;
    return ends_within(moment + 0.001, arguments);
  };
  const double save_time = seconds_of(save_);
  const std::string saved = TemporaryFolder::read(folder_.file("c.safetensors"));
  const double run_time = seconds_of(run_2a_ + "whole");
  const std::string whole = records("whole");
  int died = 0;
  for (int i = 0; i < count; ++i) {
    if (i % 2 == 0) {
      folder_.write("c.safetensors", "old");
      if (!killed(save_, save_time)) ++died;
      const std::string now = TemporaryFolder::read(folder_.file("c.safetensors"));
      ASSERT_TRUE(now == "old" || now == saved);
      continue;
    }
    // The run goes on from one kill to the next.
    if (!killed(run_2a_ + "cut", run_time)) {
      ++died;
    } else {
      ASSERT_TRUE(all_or_none("cut", whole));
      std::filesystem::remove_all(folder_.file("cut"));
    }
  }
  EXPECT_GT(died, count / 4);
  ASSERT_EQ(run(run_2a_ + "cut").status, 0);
  EXPECT_TRUE(all_or_none("cut", whole));
}

// A run that is held still as soon as it has begun, while `meanwhile` is done in its folder. Its exit status.
constexpr const char* kHold =
    "cd '{0}' && '" KVFOLD_PROGRAMS
    "'/{1}held >first 2>&1 </dev/null & first=$!; cd '{0}'; "
    "while ! ls held/*/scratch >/dev/null 2>&1; do kill -0 $first || break; done; kill -STOP $first; {2}; "
    "kill -CONT $first; wait $first";

// Somebody writes into the model's file while a run computes with it: nothing of it is recorded.
TEST_F(FaultsCli, WeightsChangedUnderARun) {
  const std::string script = fmt::format(kHold, folder_.file(""), run_2a_, "printf x >>tiny.gguf");
  EXPECT_EQ(WEXITSTATUS(std::system(script.c_str())), 2);
  const std::string said = TemporaryFolder::read(folder_.file("first"));
  EXPECT_TRUE(said.ends_with("kvfold: tiny.gguf: the file was changed while it was in use\n")) << said;
  EXPECT_EQ(records("held"), "");
}

// Two processes at one run: the second is refused while the first is at work, and the first ends as alone.
TEST_F(FaultsCli, SecondProcessIsRefused) {
  ASSERT_EQ(run(run_2a_ + "whole").status, 0);
  const std::string whole = records("whole");
  const std::filesystem::path done = std::filesystem::directory_iterator(folder_.file("whole"))->path();
  auto manifest = nlohmann::ordered_json::parse(TemporaryFolder::read(done / "manifest.json"));
  manifest["complete"] = false;
  const std::string held = "held/" + done.filename().string();
  std::filesystem::create_directories(folder_.file(held));
  folder_.write(held + "/manifest.json", manifest.dump());
  const std::string second =
      "'" KVFOLD_PROGRAMS "'/" + run_2a_ + "held >second 2>&1 </dev/null; echo $? >code";
  const std::string script = fmt::format(kHold, folder_.file(""), run_2a_, second);
  EXPECT_EQ(std::system(script.c_str()), 0) << TemporaryFolder::read(folder_.file("first"));
  EXPECT_EQ(TemporaryFolder::read(folder_.file("code")), "2\n");
  EXPECT_NE(TemporaryFolder::read(folder_.file("second")).find("another process"), std::string::npos);
  EXPECT_TRUE(records("held") == whole);
}

}  // namespace
}  // namespace kvfold::testing
