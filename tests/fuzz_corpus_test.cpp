// Everything that fuzzing begins with or has found (tests/fuzz/corpus), and mutants of it, through the
// functions that are fuzzed: they stop the program where a promise is broken.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/fuzz/mutators.h"
#include "tests/fuzz/small_files.h"
#include "tests/fuzz/targets.h"
#include "tests/temporary.h"

namespace kvfold::fuzz {
namespace {

std::vector<std::string> corpus(std::string_view target) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(KVFOLD_SOURCE_DIR "/tests/fuzz/corpus/" + std::string(target)))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> files;
  for (const auto& path : paths) files.push_back(testing::TemporaryFolder::read(path));
  return files;
}

class FuzzCorpus : public ::testing::TestWithParam<Target> {};

TEST_P(FuzzCorpus, KeepsEveryPromise) {
  const std::vector<std::string> files = corpus(GetParam().name);
  ASSERT_FALSE(files.empty());
  for (const std::string& file : files) GetParam().run(std::as_bytes(std::span(file)));
}

TEST_P(FuzzCorpus, MutantsKeepEveryPromise) {
  const std::string_view name = GetParam().name;
  Dice dice(1);
  for (const std::string& file : corpus(name))
    for (int i = 0; i < 300; ++i) {
      std::string mutant = file;
      for (size_t n = 1 + dice.below(3); n > 0; --n)
        mutant = name == "gguf"          ? mutate_gguf(mutant, 1 << 16, dice, plain_scramble)
                 : name == "safetensors" ? mutate_safetensors(mutant, 1 << 16, dice, plain_scramble)
                 : name == "cache"       ? mutate_cache(mutant, 1 << 16, dice, plain_scramble)
                                         : plain_scramble(mutant, 1 << 16, dice);
      GetParam().run(std::as_bytes(std::span(mutant)));
    }
}

// The committed seeds are what the program that makes them makes, so that they stay true to the formats.
TEST(FuzzSeeds, AreWhatTheirProgramMakes) {
  for (const Seed& seed : seeds())
    EXPECT_EQ(testing::TemporaryFolder::read(KVFOLD_SOURCE_DIR "/tests/fuzz/corpus/" + seed.target + "/" +
                                             seed.name),
              seed.bytes)
        << seed.target << "/" << seed.name;
}

INSTANTIATE_TEST_SUITE_P(, FuzzCorpus, ::testing::ValuesIn(kTargets),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace kvfold::fuzz
