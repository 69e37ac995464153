// Programs run as a user runs them, in a folder with a tiny model.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "tests/tiny_model.h"

namespace kvfold::testing {

struct Ran {
  int status;
  std::string out, err;
};

class Cli : public ::testing::Test {
 protected:
  void SetUp() override { folder_.write("tiny.gguf", tiny_model().build()); }

  Ran run(const std::string& arguments) const {
    const std::string command =
        "cd '" + folder_.file("") + "' && '" KVFOLD_PROGRAMS "'/" + arguments + " >out 2>err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, TemporaryFolder::read(folder_.file("out")),
            TemporaryFolder::read(folder_.file("err"))};
  }
  // Kills a program after so many seconds, unless it has ended by then: whether it had, with exit status 0.
  // It is gone, its locks with it, when this returns (`timeout -s KILL` kills itself too and waits for
  // nothing).
  bool ends_within(double seconds, const std::string& arguments) const {
    const std::string command =
        "cd '" + folder_.file("") + "' && exec '" KVFOLD_PROGRAMS "'/" + arguments + " >out 2>err </dev/null";
    const pid_t child = ::fork();
    if (child == 0) {
      ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      ::_exit(127);
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    int status = 0;
    while (::waitpid(child, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        continue;
      }
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      break;
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  // The time that a program takes that ends with exit status 0.
  double seconds_of(const std::string& arguments) const {
    const auto start = std::chrono::steady_clock::now();
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.status, 0) << ran.err;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  Ran kvfold(const std::string& arguments) const { return run("kvfold " + arguments); }
  nlohmann::json json(const std::string& arguments) const {
    const Ran ran = kvfold(arguments + " --json");
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 1) << ran.out;
    return nlohmann::json::parse(ran.out);
  }
  nlohmann::json ids(const std::string& arguments) const { return json(arguments).at("ids"); }
  // Exit 2, nothing on stdout, one short line of printable ASCII on stderr that says `what`.
  void expect_refused(const std::string& arguments, const std::string& what) const {
    const Ran ran = kvfold(arguments);
    EXPECT_EQ(ran.status, 2) << arguments << "\n" << ran.err;
    EXPECT_EQ(ran.out, "") << arguments;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    EXPECT_TRUE(std::all_of(ran.err.begin(), ran.err.end() - 1, [](char c) { return c >= ' ' && c < 127; }))
        << ran.err;
    EXPECT_LT(ran.err.size(), 600U) << ran.err;
    EXPECT_NE(ran.err.find(what), std::string::npos) << arguments << "\n" << ran.err;
  }

  TemporaryFolder folder_;
};

}  // namespace kvfold::testing
