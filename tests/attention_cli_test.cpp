// kvfold attention: the file that it writes, its shares, and what it refuses.
#include <cstring>

#include "engine/attention_weights.h"
#include "tests/cli_fixture.h"

namespace kvfold::testing {
namespace {

class AttentionCli : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    ASSERT_EQ(kvfold("cache save tiny.gguf --text 'abc def ' --out c.safetensors").status, 0);
  }
};

TEST_F(AttentionCli, FileIsWhatTheLibraryComputes) {
  const auto out =
      json("attention tiny.gguf c.safetensors --text 'who?' --layers 1 --heads 0,2-3 --out a.npy");
  const std::vector<size_t> shape = out.at("shape");
  const size_t queries = out.at("ids").size();
  const size_t rows = out.at("tokens").size();
  EXPECT_EQ(shape, (std::vector<size_t>{1, 3, queries, rows}));

  const std::unique_ptr<Session> session = tiny_session(folder_);
  KvCache cache = session->make_cache();
  const std::vector<TokenId> first = session->tokenizer().encode("abc def ");
  ASSERT_TRUE(session->feed(cache, first).ok());
  const std::vector<int> layers = {1};
  const std::vector<int> heads = {0, 2, 3};
  const auto expected =
      feed_with_attention(*session, cache, session->tokenizer().encode("who?"), layers, heads);
  ASSERT_TRUE(expected.ok());
  const std::string bytes = TemporaryFolder::read(folder_.file("a.npy"));
  const size_t size = expected->weights.size() * sizeof(float);
  ASSERT_GT(bytes.size(), size);
  EXPECT_EQ(bytes.substr(0, 6), "\x93NUMPY");
  EXPECT_EQ((bytes.size() - size) % 64, 0U);
  EXPECT_EQ(std::memcmp(bytes.data() + bytes.size() - size, expected->weights.data(), size), 0);
  EXPECT_NE(bytes.find("'shape': (1, 3, " + std::to_string(queries) + ", " + std::to_string(rows) + ", )"),
            std::string::npos);
}

TEST_F(AttentionCli, SharesAddUpAndNameWhereRowsCameFrom) {
  const auto out = json("attention tiny.gguf c.safetensors --text 'who?' --out a.npy");
  double sum = 0;
  std::vector<std::string> names;
  for (const auto& group : out.at("mass")) {
    sum += group.at("mean").get<double>();
    names.push_back(group.at("name"));
    EXPECT_EQ(group.at("by_head").size(), 2U);
    EXPECT_EQ(group.at("by_head")[0].size(), 4U);
  }
  EXPECT_NEAR(sum, 1, 1e-6);
  EXPECT_EQ(names, (std::vector<std::string>{"row 0", "cache: fed", "the text"}));
  const Ran table = kvfold("attention tiny.gguf c.safetensors --text 'who?' --out a.npy");
  EXPECT_EQ(table.status, 0);
  EXPECT_NE(table.out.find("cache: fed"), std::string::npos);
}

TEST_F(AttentionCli, RefusesWhatDoesNotExist) {
  const std::string begin = "attention tiny.gguf c.safetensors --text a --out a.npy ";
  expect_refused(begin + "--layers 2", "0-1 exist");
  expect_refused(begin + "--heads 3-1", "reversed");
  expect_refused(begin + "--heads ''", "at least one");
  expect_refused("attention tiny.gguf absent.safetensors --text a --out a.npy", "absent.safetensors");
  expect_refused("attention tiny.gguf c.safetensors --text '' --out a.npy", "no tokens");
  expect_refused("attention tiny.gguf c.safetensors --text a", "--out");
  expect_refused("attention tiny.gguf c.safetensors --text a --out absent/a.npy", "absent");
  EXPECT_EQ(std::filesystem::exists(folder_.file("a.npy")), false);
}

}  // namespace
}  // namespace kvfold::testing
