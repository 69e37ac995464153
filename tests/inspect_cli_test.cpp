// kvfold inspect: its tables and JSON, the page's file, and what it refuses. How the page looks and whether
// its numbers are right is tests/pages/test_inspect.py.
#include <cmath>

#include "tests/cli_fixture.h"

namespace kvfold::testing {
namespace {

class InspectCli : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    ASSERT_EQ(kvfold("cache save tiny.gguf --text 'abc def' --out a.safetensors").status, 0);
    ASSERT_EQ(kvfold("cache save tiny.gguf --text 'xyz' --out b.safetensors").status, 0);
  }
  bool exists(const std::string& name) const { return std::filesystem::exists(folder_.file(name)); }
};

TEST_F(InspectCli, LanesAndRows) {
  const auto out = json("inspect a.safetensors b.safetensors --model tiny.gguf");
  ASSERT_EQ(out.at("caches").size(), 2U);
  const auto& cache = out.at("caches")[0];
  ASSERT_EQ(cache.at("lanes").size(), 4U);  // 2 layers x 2 KV heads
  const auto ids = json("tokenize tiny.gguf --text 'abc def'").at("ids");
  ASSERT_EQ(cache.at("rows").size(), ids.size());
  std::string text;
  double sum = 0;  // of the rows' mean norms
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto& row = cache.at("rows")[i];
    EXPECT_EQ(row.at("token"), ids[i]);
    EXPECT_EQ(row.at("position"), i);
    text += row.at("text");
    sum += row.at("k_norm").get<double>();
  }
  EXPECT_EQ(text, "abc def");
  // All lanes hold all rows, so the mean over rows of means over lanes is that over lanes of means over rows.
  double by_lane = 0;
  for (const auto& lane : cache.at("lanes")) {
    by_lane += lane.at("k").at("mean_norm").get<double>() / 4;
    EXPECT_EQ(lane.at("positions").size(), ids.size());
    EXPECT_LE(lane.at("v").at("effective_rank").get<double>(), std::min<double>(ids.size(), 16) + 1e-9);
  }
  EXPECT_NEAR(by_lane, sum / ids.size(), 1e-9 * by_lane);
}

TEST_F(InspectCli, TablesHaveALineForEachLaneAndRow) {
  const Ran lanes = kvfold("inspect a.safetensors");
  EXPECT_EQ(lanes.status, 0) << lanes.err;
  EXPECT_EQ(std::count(lanes.out.begin(), lanes.out.end(), '\n'), 2 + 4) << lanes.out;
  const Ran rows = kvfold("inspect b.safetensors --rows --model tiny.gguf");
  EXPECT_EQ(rows.status, 0) << rows.err;
  EXPECT_NE(rows.out.find("'x'"), std::string::npos) << rows.out;
  // Without its model tokens have numbers alone.
  EXPECT_EQ(kvfold("inspect b.safetensors --rows").out.find("'x'"), std::string::npos);
}

TEST_F(InspectCli, PageIsOneFileOrAnErrorThatNamesTheTarget) {
  if (!std::filesystem::exists(KVFOLD_SOURCE_DIR "/experiments/page/plotly.min.js")) {
    expect_refused("inspect a.safetensors --html a.html", "make page-script");
    EXPECT_FALSE(exists("a.html"));
    return;
  }
  ASSERT_EQ(kvfold("inspect a.safetensors b.safetensors --html a.html --model tiny.gguf --query '</script>'")
                .status,
            0);
  const std::string page = TemporaryFolder::read(folder_.file("a.html"));
  EXPECT_EQ(page.rfind("</html>\n"), page.size() - 8);
  const size_t begin = page.find("id=\"data\">") + 10;
  const auto data = nlohmann::json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  EXPECT_EQ(data.at("caches").size(), 2U);
  EXPECT_FALSE(data.at("distances").is_null());
  std::string query;
  for (const auto& text : data.at("caches")[0].at("attention").at("texts")) query += text;
  EXPECT_EQ(query, "</script>");
}

TEST_F(InspectCli, RefusesWhatIsNotThere) {
  expect_refused("inspect", "CACHE");
  expect_refused("inspect absent.safetensors", "absent.safetensors");
  expect_refused("inspect tiny.gguf", "tiny.gguf");
  expect_refused("inspect a.safetensors --query a", "--html");
  expect_refused("inspect a.safetensors --query a --html a.html", "--model");
  expect_refused("inspect a.safetensors --model absent.gguf", "absent.gguf");
  expect_refused("inspect a.safetensors --html absent/a.html", "absent");
  TinyModelOptions deeper;
  deeper.layers = 3;
  folder_.write("other.gguf", tiny_model(deeper).build());
  expect_refused("inspect a.safetensors --model other.gguf", "another model");
  EXPECT_FALSE(exists("a.html"));
}

}  // namespace
}  // namespace kvfold::testing
