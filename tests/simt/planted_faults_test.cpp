// Every kind of fault that a kernel can have is noticed by the build that is meant to notice it, at its line,
// in any order of threads; and the same kernel without the fault passes every build.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/temporary.h"

namespace {

using kvfold::testing::TemporaryFolder;

struct Ran {
  int status;
  std::string out, err;
};

class Programs {
 public:
  // `build`: plain, tsan, asan or shadow.
  Ran run(const std::string& build, const std::string& fault, bool planted, const std::string& order) const {
    Ran ran = run_once(build, fault, planted, order);
    // Where the address randomisation cannot be turned off, ThreadSanitizer dislikes some of the layouts that
    // it draws.
    for (int retry = 0; retry < 20 && ran.err.find("unexpected memory mapping") != std::string::npos;
         ++retry) {
      ran = run_once(build, fault, planted, order);
    }
    return ran;
  }

 private:
  Ran run_once(const std::string& build, const std::string& fault, bool planted,
               const std::string& order) const {
    const std::string command = "cd '" + folder_.file("") +
                                "' && TSAN_OPTIONS=halt_on_error=1 SIMT_ORDER=" + order +
                                " '" KVFOLD_SIMT_PROGRAMS "/simt_planted_faults_" + build + "' " + fault +
                                (planted ? " planted" : " clean") + " >out 2>err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, TemporaryFolder::read(folder_.file("out")),
            TemporaryFolder::read(folder_.file("err"))};
  }
  TemporaryFolder folder_;
};

// "planted_faults.cpp:LINE" of each line that the fault may be reported at.
std::vector<std::string> fault_lines(const std::string& fault) {
  std::istringstream source(TemporaryFolder::read(KVFOLD_SOURCE_DIR "/tests/simt/planted_faults.cpp"));
  std::vector<std::string> places;
  std::string line;
  for (int number = 1; std::getline(source, line); ++number) {
    if ((line + " ").find("FAULT " + fault + " ") != std::string::npos) {
      places.push_back("planted_faults.cpp:" + std::to_string(number));
    }
  }
  return places;
}

struct Expected {
  const char* fault;
  const char* build;
  const char* says;
};
void PrintTo(const Expected& e, std::ostream* out) { *out << e.fault << " in " << e.build; }

class PlantedFault : public ::testing::TestWithParam<Expected> {};

TEST_P(PlantedFault, IsNoticedAtItsLineInAnyOrder) {
  const Expected& expected = GetParam();
  const Programs programs;
  const std::vector<std::string> places = fault_lines(expected.fault);
  ASSERT_FALSE(places.empty());
  for (const char* order : {"forward", "reverse", "shuffled:5"}) {
    const Ran ran = programs.run(expected.build, expected.fault, true, order);
    EXPECT_NE(ran.status, 0) << order << " " << ran.err;
    EXPECT_NE(ran.err.find(expected.says), std::string::npos) << order << " " << ran.err;
    bool placed = false;
    for (const std::string& place : places) placed |= ran.err.find(place) != std::string::npos;
    EXPECT_TRUE(placed) << order << ", expected " << places[0] << " " << ran.err;
  }
}

constexpr char kRace[] = "ThreadSanitizer: data race";
constexpr char kOverflow[] = "buffer-overflow";
constexpr char kElsewhere[] = "that are neither the device's, nor shared, nor the thread's own";
INSTANTIATE_TEST_SUITE_P(
    Kinds, PlantedFault,
    ::testing::Values(
        Expected{"missing_barrier", "tsan", kRace}, Expected{"missing_barrier", "shadow", "shared memory"},
        Expected{"missing_second_barrier", "tsan", kRace},
        Expected{"missing_second_barrier", "shadow", "race: "},
        Expected{"missing_warp_barrier", "tsan", kRace},
        Expected{"missing_warp_barrier", "shadow", "shared memory"},
        Expected{"shuffle_for_a_barrier", "tsan", kRace},
        Expected{"shuffle_for_a_barrier", "shadow", "race: read"},
        Expected{"half_a_warp_barrier", "tsan", kRace},
        Expected{"half_a_warp_barrier", "shadow", "race: read"}, Expected{"write_write_race", "tsan", kRace},
        Expected{"write_write_race", "shadow", "race: write of 4 bytes and the write"},
        Expected{"blocks_write_one_element", "shadow", "of block"},
        Expected{"block_reads_its_neighbour", "shadow", "of block"},
        Expected{"absent_lanes", "plain", "shuffle deadlocks: lanes of the mask ffffffff never come"},
        Expected{"shuffle_from_outside", "plain", "shuffle reads lane 20, which is not in the mask"},
        Expected{"divergent_barrier", "plain", "divergent __syncthreads: 64 of 128 threads"},
        Expected{"return_before_barrier", "plain", "divergent __syncthreads: 32 of 128 threads"},
        Expected{"shared_out_of_bounds", "asan", "global-buffer-overflow"},
        Expected{"dynamic_shared_out_of_bounds", "asan", kOverflow},
        Expected{"dynamic_shared_out_of_bounds", "shadow", kElsewhere},
        Expected{"device_out_of_bounds", "asan", kOverflow},
        Expected{"device_out_of_bounds", "shadow", kElsewhere},
        Expected{"device_write_before_begin", "asan", kOverflow},
        Expected{"device_write_before_begin", "shadow", kElsewhere},
        Expected{"misaligned_wide_load", "asan", "misaligned address"},
        Expected{"uninitialised_shared", "shadow", "shared memory that no thread of the block has written"},
        Expected{"template_missing_barrier", "tsan", kRace},
        Expected{"template_missing_barrier", "shadow", "shared memory"},
        Expected{"template_uninitialised_shared", "shadow",
                 "shared memory that no thread of the block has written"},
        Expected{"template_shared_out_of_bounds", "asan", "global-buffer-overflow"},
        Expected{"static_variable", "shadow", "write to a static variable"},
        Expected{"host_pointer", "shadow", kElsewhere},
        Expected{"freed_memory", "asan", "heap-use-after-free"},
        Expected{"freed_memory", "shadow", kElsewhere}),
    [](const auto& test) { return std::string(test.param.fault) + "_" + test.param.build; });

// Without any sanitizer, what is not written shows in the results.
TEST(PlantedFaults, UninitialisedSharedMemoryIsNaN) {
  const Programs programs;
  for (const char* fault : {"uninitialised_shared", "missing_barrier", "missing_warp_barrier",
                            "template_missing_barrier", "template_uninitialised_shared"}) {
    for (const char* order : {"forward", "reverse", "shuffled:5"}) {
      const Ran ran = programs.run("plain", fault, true, order);
      EXPECT_EQ(ran.status, 4) << fault << " " << order << " " << ran.err;
    }
  }
}

TEST(PlantedFaults, ADependenceOnTheOrderOfThreadsShowsInTheResults) {
  const Programs programs;
  const Ran forward = programs.run("plain", "order_of_threads", true, "forward");
  ASSERT_EQ(forward.status, 0) << forward.err;
  EXPECT_NE(programs.run("plain", "order_of_threads", true, "reverse").out, forward.out);
  EXPECT_NE(programs.run("plain", "order_of_threads", true, "shuffled:5").out, forward.out);
}

class CleanTwin : public ::testing::TestWithParam<const char*> {};

TEST_P(CleanTwin, PassesEveryBuildWithTheSameResults) {
  const Programs programs;
  const Ran plain = programs.run("plain", GetParam(), false, "forward");
  EXPECT_NE(plain.out, "");
  const std::vector<std::pair<const char*, const char*>> runs = {
      {"plain", "forward"}, {"plain", "reverse"},  {"plain", "shuffled:5"}, {"tsan", "reverse"},
      {"asan", "forward"},  {"shadow", "forward"}, {"shadow", "shuffled:5"}};
  for (const auto& [build, order] : runs) {
    const Ran ran = programs.run(build, GetParam(), false, order);
    EXPECT_EQ(ran.status, 0) << build << " " << order;
    EXPECT_EQ(ran.err, "") << build << " " << order;
    EXPECT_EQ(ran.out, plain.out) << build << " " << order;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, CleanTwin,
    ::testing::Values("missing_barrier", "missing_second_barrier", "missing_warp_barrier",
                      "shuffle_for_a_barrier", "half_a_warp_barrier", "write_write_race",
                      "blocks_write_one_element", "block_reads_its_neighbour", "absent_lanes",
                      "shuffle_from_outside", "divergent_barrier", "return_before_barrier",
                      "shared_out_of_bounds", "dynamic_shared_out_of_bounds", "device_out_of_bounds",
                      "device_write_before_begin", "misaligned_wide_load", "uninitialised_shared",
                      "template_missing_barrier", "template_uninitialised_shared",
                      "template_shared_out_of_bounds", "static_variable", "host_pointer", "order_of_threads"),
    [](const auto& test) { return std::string(test.param); });

}  // namespace
