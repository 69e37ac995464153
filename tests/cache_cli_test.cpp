// The `kvfold cache` commands that go from files to files.
#include <filesystem>

#include "tests/cli_fixture.h"

namespace kvfold::testing {
namespace {

class CacheCommands : public Cli {};

TEST_F(CacheCommands, HelpSaysWhatEachOptionDoes) {
  for (const char* command :
       {"extract",       "insert", "overwrite", "erase",      "keep",   "truncate",   "shift",
        "set-positions", "concat", "mix",       "add",        "scale",  "match-norm", "noise",
        "recompute",     "info",   "compare",   "statistics", "export", "import",     "project"}) {
    const Ran ran = kvfold(std::string("cache ") + command + " --help");
    EXPECT_EQ(ran.status, 0) << command;
    EXPECT_NE(ran.out.find("--json"), std::string::npos) << command;
    EXPECT_EQ(ran.err, "") << command;
  }
}

// The commands on files against a dense implementation in Python that shares no line with them.
TEST_F(CacheCommands, RandomPrograms) {
  for (const auto& [name, text] : {std::pair{"a", "The quick brown fox"}, std::pair{"b", "jumps over"}})
    ASSERT_EQ(kvfold(std::string("cache save tiny.gguf --cache-type f32 --text '") + text + "' --out " +
                     name + ".safetensors")
                  .status,
              0);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const char* const size = " 3 20";  // programs, commands in each
#else
  const char* const size = " 12 40";
#endif
  const std::string command = "python3 " KVFOLD_SOURCE_DIR "/tests/cache_programs.py " KVFOLD_PROGRAMS
                              "/kvfold '" +
                              folder_.file("") + "'" + size + " >'" + folder_.file("out") + "' 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << TemporaryFolder::read(folder_.file("out"));
}

TEST_F(CacheCommands, RefuseInOneLine) {
  ASSERT_EQ(kvfold("cache save tiny.gguf --text abcdef --out c.safetensors").status, 0);
  ASSERT_EQ(kvfold("cache save tiny.gguf --text abc --cache-type f32 --out f32.safetensors").status, 0);
  TinyModelOptions deeper;
  deeper.layers = 3;
  folder_.write("other.gguf", tiny_model(deeper).build());
  ASSERT_EQ(kvfold("cache save other.gguf --text abc --out other.safetensors").status, 0);
  const std::string in = "c.safetensors --out x ";
  expect_refused("cache extract " + in + "--select parts=k", "--fill");
  expect_refused("cache extract " + in + "--select parts=k --fill absent", "absent");
  expect_refused("cache extract " + in + "--select parts=k --fill f32.safetensors", "f32");
  expect_refused("cache insert " + in + "other.safetensors", "2 x 2 x 16");
  expect_refused("cache insert " + in + "c.safetensors --at 7", "0-6");
  expect_refused("cache insert " + in + "c.safetensors --at -1", "0-6");
  expect_refused("cache insert " + in + "c.safetensors --positions gap:x", "gap:N");
  expect_refused("cache overwrite " + in + "c.safetensors --rows 0-1", "2 rows named for a slice of 6");
  expect_refused("cache overwrite " + in + "c.safetensors --rows 1-6", "0-5 exist");
  expect_refused("cache erase " + in + "--select parts=v", "both");
  expect_refused("cache erase " + in, "--select");
  expect_refused("cache truncate " + in + "--rows 7", "the cache has 6");
  expect_refused("cache truncate " + in + "--rows -1", "the cache has 6");
  expect_refused("cache shift " + in + "--delta 2000000000", "out of range");
  expect_refused("cache shift " + in + "--delta 1 --rows 4-3", "reversed");
  expect_refused("cache set-positions " + in + "--positions 0..4", "5 positions for 6 rows");
  expect_refused("cache set-positions " + in + "--positions 0..6", "more positions than the 6 rows");
  expect_refused("cache set-positions " + in + "--positions 5..0", "reversed");
  expect_refused("cache mix " + in + "c.safetensors --alpha nan", "alpha");
  expect_refused("cache add " + in + "--vectors c.safetensors", "neither");
  expect_refused("cache match-norm " + in + "c.safetensors --by column", "column");
  expect_refused("cache noise " + in + "--kind loud", "matched");
  expect_refused("cache recompute other.gguf " + in, "another model");
  expect_refused("cache import c.safetensors --out x --like c.safetensors", "needs no import");
  expect_refused("cache import c.safetensors --out x", "--like");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("x")));
}

// What is exported without RoPE is what the pages hold; recompute over an unchanged context gives it again.
TEST_F(CacheCommands, AgreeWithEachOther) {
  ASSERT_EQ(kvfold("cache save tiny.gguf --text 'ab cd ef' --out c.safetensors").status, 0);
  ASSERT_EQ(kvfold("cache recompute tiny.gguf c.safetensors --select rows=2-5 --out r.safetensors").status,
            0);
  EXPECT_EQ(json("cache compare c.safetensors r.safetensors").at("equal"), true);
  ASSERT_EQ(kvfold("cache export c.safetensors --out e.safetensors").status, 0);
  ASSERT_EQ(kvfold("cache import e.safetensors --model tiny.gguf --out i.safetensors").status, 0);
  EXPECT_EQ(json("cache compare c.safetensors i.safetensors").at("equal"), true);
  ASSERT_EQ(kvfold("cache shift c.safetensors --delta 77 --out there.safetensors").status, 0);
  ASSERT_EQ(kvfold("cache shift there.safetensors --delta -77 --out back.safetensors").status, 0);
  EXPECT_EQ(json("cache compare c.safetensors back.safetensors").at("equal"), true);
  EXPECT_EQ(json("cache insert c.safetensors c.safetensors --at end --out d.safetensors").at("rows_copied"),
            0);
  const auto info = json("cache info d.safetensors");
  EXPECT_EQ(info.at("rows"), 2 * json("cache info c.safetensors").at("rows").get<int>());
  EXPECT_EQ(info.at("sources").size(), 2U);
  EXPECT_EQ(json("cache statistics c.safetensors --select 'layers=1 parts=v'").at("lanes").size(), 2U);
}

}  // namespace
}  // namespace kvfold::testing
