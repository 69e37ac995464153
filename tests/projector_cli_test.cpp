// kvfold cache project, and the programs of phase 2e on tiny models.
#include "engine/kv/flat_rows.h"
#include "engine/kv/projector.h"
#include "engine/random.h"
#include "loaders/model_loader.h"
#include "tests/cli_fixture.h"
#include "tests/signed_file.h"

namespace kvfold::testing {
namespace {

ProjectorTensor tensor(std::vector<int64_t> shape, const std::function<double()>& value) {
  ProjectorTensor t{std::move(shape), {}};
  int64_t count = 1;
  for (const int64_t n : t.shape) count *= n;
  for (int64_t i = 0; i < count; ++i) t.data.push_back(static_cast<float>(value()));
  return t;
}

class ProjectCommand : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    TinyModelOptions other;
    other.architecture = "qwen2";
    other.layers = 3;
    other.heads = other.kv_heads = 1;
    other.head_dim = 32;
    other.seed = 2;
    folder_.write("other.gguf", tiny_model(other).build());
    ASSERT_EQ(kvfold("cache save tiny.gguf --text 'the text of a cache' --out c.safetensors").status, 0);
    ASSERT_TRUE(save_projector(ridge("tiny.gguf", "other.gguf"), folder_.file("p.safetensors")).ok());
  }

  ProjectorModel model(const std::string& file) const {
    const auto source = load_model_source(folder_.file(file));
    EXPECT_TRUE(source.ok());
    const ModelConfig& c = source.value().config;
    return {source.value().fingerprint, c.name, {c.layers, c.kv_heads, c.head_dim}};
  }

  // A linear map of gaussians.
  ProjectorData ridge(const std::string& from, const std::string& to) const {
    ProjectorData out{"ridge", model(from), model(to), {}, {}};
    const int64_t in = row_width(out.source.shape);
    const int64_t width = row_width(out.target.shape);
    Random random(3);
    const auto gaussian = [&] { return random.gaussian(); };
    const auto one = [] { return 1; };
    out.tensors["ridge.mean_in"] = tensor({in}, gaussian);
    out.tensors["ridge.scale_in"] = tensor({in}, one);
    out.tensors["ridge.mean_out"] = tensor({width}, gaussian);
    out.tensors["ridge.scale_out"] = tensor({width}, one);
    out.tensors["ridge.weight"] = tensor({width, in}, gaussian);
    return out;
  }

  static constexpr const char* kProject = "cache project c.safetensors p.safetensors --source tiny.gguf ";
};

TEST_F(ProjectCommand, MakesACacheThatTheOtherModelGoesOnWith) {
  const auto made = json(std::string(kProject) + "--target other.gguf --out o.safetensors");
  EXPECT_EQ(made.at("rows"),
            static_cast<int>(ids("cache save other.gguf --text 'the text of a cache' --out t").size()));
  const auto ran = json("cache run other.gguf o.safetensors --text ' goes on' -n 3");
  EXPECT_EQ(ran.at("inserted_rows"), made.at("rows"));
  const auto info = json("cache info o.safetensors");
  EXPECT_EQ(info.at("layers"), 3);
  EXPECT_NE(info.dump().find("project"), std::string::npos);
}

TEST_F(ProjectCommand, TakesAnySelection) {
  const std::string to = std::string(kProject) + "--target other.gguf --out o.safetensors ";
  ASSERT_EQ(kvfold(to + "--select 'layers=1-2 rows=2-4'").status, 0);
  EXPECT_EQ(json("cache info o.safetensors").at("rows"), 3);
  ASSERT_EQ(kvfold(to + "--select 'parts=v' --fill zero").status, 0);
  expect_refused(to + "--select 'parts=v'", "--fill");
  expect_refused(to + "--select 'layers=3'", "0-2");
}

TEST_F(ProjectCommand, RefusesOtherModelsWithBothShapes) {
  expect_refused(std::string(kProject) + "--target tiny.gguf --out x", "2 layers x 2 KV heads x 16");
  expect_refused(std::string(kProject) + "--target tiny.gguf --out x", "3 layers x 1 KV heads x 32");
  expect_refused("cache project c.safetensors p.safetensors --source other.gguf --target other.gguf --out x",
                 "2 layers x 2 KV heads x 16");
  expect_refused(std::string(kProject) + "--out x", "no fetched model");
  ASSERT_EQ(kvfold("cache save other.gguf --text abc --out other.safetensors").status, 0);
  expect_refused(
      "cache project other.safetensors p.safetensors --source tiny.gguf --target other.gguf --out x",
      "3 layers x 1 KV heads x 32");
  expect_refused("cache project c.safetensors c.safetensors --out x", "kvfold_projector");
  expect_refused("cache project c.safetensors none --out x", "none");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("x")));
}

TEST_F(ProjectCommand, RefusesACacheThatLacksRows) {
  ASSERT_EQ(kvfold("cache erase c.safetensors --select 'layers=0 rows=1' --out less.safetensors").status, 0);
  expect_refused(
      "cache project less.safetensors p.safetensors --source tiny.gguf --target other.gguf --out x",
      "a projector reads all lanes");
}

// A cache file may say that its rows are of tokens that no vocabulary has.
TEST_F(ProjectCommand, RefusesACacheOfTokensOutsideTheVocabulary) {
  SignedFile cache = SignedFile::parse(TemporaryFolder::read(folder_.file("c.safetensors")));
  auto tokens = nlohmann::json::parse(cache.metadata.at("tokens"));
  for (const int64_t id : {int64_t{INT32_MAX}, int64_t{100'000}}) {
    tokens[2] = id;
    cache.metadata["tokens"] = tokens.dump();
    folder_.write("bad.safetensors", cache.build());
    const std::string what = "token id " + std::to_string(id) + " is outside the vocabulary";
    expect_refused(
        "cache project bad.safetensors p.safetensors --source tiny.gguf --target other.gguf --out x",
        "bad.safetensors: row 2: " + what);
    expect_refused("cache recompute tiny.gguf bad.safetensors --select rows=1-3 --out x", what);
  }
  EXPECT_FALSE(std::filesystem::exists(folder_.file("x")));
}

TEST_F(ProjectCommand, RefusesWhatPagesCannotHold) {
  ProjectorData large = ridge("tiny.gguf", "other.gguf");
  const int width = row_width(large.target.shape);
  large.tensors["ridge.mean_out"].data[row_offset(large.target.shape, Part::kValue, 1) + 3] = 1e5F;
  ASSERT_TRUE(save_projector(large, folder_.file("p.safetensors")).ok());
  const std::string to = std::string(kProject) + "--target other.gguf --out x";
  expect_refused(to, "p.safetensors: row 0: layer 1 head 0: V becomes ");
  expect_refused(to, ", beyond what pages of type f16 can hold");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("x")));
  EXPECT_EQ(kvfold(to + " --cache-type q8").status, 0);
  std::filesystem::remove(folder_.file("x"));
  // A product that f32 cannot hold either.
  large.tensors["ridge.scale_out"].data.assign(static_cast<size_t>(width), 3e38F);
  ASSERT_TRUE(save_projector(large, folder_.file("p.safetensors")).ok());
  expect_refused(to + " --cache-type f32", "inf, beyond what pages of type f32 can hold");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("x")));
}

TEST_F(ProjectCommand, RefusesDamagedProjectors) {
  const std::string good = TemporaryFolder::read(folder_.file("p.safetensors"));
  const auto refused = [&](const std::string& bytes, const std::string& what) {
    folder_.write("bad", bytes);
    expect_refused("cache project c.safetensors bad --source tiny.gguf --target other.gguf --out x",
                   "bad: " + what);
  };
  for (size_t size = 0; size < good.size(); size += 1 + good.size() / 40) refused(good.substr(0, size), "");
  for (size_t at = 3; at < good.size(); at += good.size() / 40) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    refused(bad, "");
  }
  SignedFile lie = SignedFile::parse(good);
  lie.set("ridge.weight", 5, std::numeric_limits<float>::quiet_NaN());
  refused(lie.build(), "projector: tensor 'ridge.weight': element 5 is nan");
  lie = SignedFile::parse(good);
  lie.metadata["source.fingerprint"] = "\x1B[2J";
  folder_.write("bad", lie.build());
  expect_refused("cache project c.safetensors bad --source tiny.gguf --target other.gguf --out x", "?[2J");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("x")));
}

// Texts of which nothing is learned, but every step is taken.
std::string corpus(uint64_t seed = 4) {
  std::string out;
  Random random(seed);
  for (int i = 0; i < 40; ++i) {
    std::string text = "The";
    for (int w = 0; w < 30; ++w)
      text += " " + std::string(1 + random.below(6), static_cast<char>('a' + random.below(26)));
    out += nlohmann::json{{"id", "t/" + std::to_string(i)},
                          {"split", i < 24   ? "train"
                                    : i < 32 ? "dev"
                                             : "test"},
                          {"kind", "noise"},
                          {"text", text}}
               .dump() +
           "\n";
  }
  return out;
}

TEST_F(ProjectCommand, ARunFitsAndJudges) {
  folder_.write("d.jsonl", corpus());
  folder_.write("f.jsonl", nlohmann::json{{"id", "f/0"},
                                          {"kind", "known"},
                                          {"text", "Hello, my name is Ab and I live in Cd."},
                                          {"name", "Ab"},
                                          {"city", "Cd"},
                                          {"twin_name", "Ef"},
                                          {"twin_city", "Gh"}}
                                   .dump() +
                               "\n");
  const std::string fit =
      "fit_projector --source tiny.gguf --target ./other.gguf --corpus d.jsonl --lambda 0.1 --rank 5 --dev "
      "8 ";
  Ran ran = run(fit + "--out whole");
  ASSERT_EQ(ran.status, 0) << ran.err;
  // Stopped after some texts and gone on with: the texts are all there.
  ASSERT_EQ(run(fit + "--sums sums --out half --train 16").status, 0);
  ASSERT_EQ(run(fit + "--sums sums --out both").status, 0);
  const auto both = load_projector(folder_.file("both/tiny.gguf-to-other.gguf.safetensors"));
  ASSERT_TRUE(both.ok()) << both.status().message();
  EXPECT_EQ(both.value().notes.at("texts"), "24");
  // Fewer texts than are in the sums, or others: not what was asked for.
  const auto refused = [&](const std::string& arguments, const std::string& what) {
    const Ran no = run(arguments);
    EXPECT_EQ(no.status, 2);
    EXPECT_NE(no.err.find(what), std::string::npos) << no.err;
  };
  refused(fit + "--sums sums --out half --train 16", ".sums: sums of 24 texts, of which some are not");
  folder_.write("d2.jsonl", corpus(5));
  refused(
      "fit_projector --source tiny.gguf --target ./other.gguf --corpus d2.jsonl --rank 5 --sums sums --out x",
      ".sums: sums of 24 texts, of which some are not");
  refused(fit + "--out x --rank 5,193", "--rank 193: expected at most 128");
  // Of 17 texts the last would be alone, and fitted to its own rows.
  refused(fit + "--out x --shuffle --train 1", "--shuffle: one text");
  ASSERT_EQ(run(fit + "--out shuffled --shuffle --train 17").status, 0);
  // Weighted sums are other sums, also where plain ones lie beside them. (Those of `whole` were added up
  // alike.)
  ASSERT_EQ(run(fit + "--sums sums --out weighted --by-attention").status, 0);
  const auto weighted = load_projector(folder_.file("weighted/tiny.gguf-to-other.gguf.safetensors"));
  const auto plain = load_projector(folder_.file("whole/tiny.gguf-to-other.gguf.safetensors"));
  ASSERT_TRUE(weighted.ok() && plain.ok());
  EXPECT_EQ(weighted.value().notes.at("texts"), "24");
  const char* mean = "ridge.mean_out";
  EXPECT_NE(weighted.value().tensors.at(mean).data, plain.value().tensors.at(mean).data);
  ran = run(
      "run_2e --source tiny.gguf --target other.gguf --projector whole/tiny.gguf-to-other.gguf.safetensors "
      "--documents d.jsonl --facts f.jsonl -n 2");
  ASSERT_EQ(ran.status, 0) << ran.err;
  for (const char* word : {"none", "text", "projected", "mismatched", "mismatched-text", "mean", "noise",
                           "true-k", "true-v", "written", "G_pair of projected caches",
                           "G_pair of the receiver's own", "the former less the latter"})
    EXPECT_NE(ran.out.find(word), std::string::npos) << word;
  // Other facts are another run.
  const std::string judge =
      "run_2e --source tiny.gguf --target other.gguf --projector "
      "whole/tiny.gguf-to-other.gguf.safetensors --documents d.jsonl --facts f.jsonl -n 2 --runs ";
  std::string facts = TemporaryFolder::read(folder_.file("f.jsonl"));
  const auto identity = [&](const std::string& runs) {
    EXPECT_EQ(run(judge + runs).status, 0);
    for (const auto& entry : std::filesystem::directory_iterator(folder_.file(runs)))
      return nlohmann::json::parse(TemporaryFolder::read((entry.path() / "manifest.json").string()))
          .at("identity");
    return nlohmann::json();
  };
  const nlohmann::json first = identity("a");
  EXPECT_EQ(identity("b"), first);
  facts.replace(facts.find("Cd"), 2, "Ce");
  folder_.write("f.jsonl", facts);
  EXPECT_NE(identity("c"), first);
  ran = run(
      "run_2e --source other.gguf --target tiny.gguf --projector whole/tiny.gguf-to-other.gguf.safetensors "
      "--documents d.jsonl --facts f.jsonl");
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("2 x 2 x 16"), std::string::npos) << ran.err;
}

}  // namespace
}  // namespace kvfold::testing
