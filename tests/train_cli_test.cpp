// train_projector as a user runs it: killed at any time it goes on to the same bytes; what does not fit is
// refused.
#include <cmath>
#include <limits>
#include <random>

#include "engine/kv/projector.h"
#include "engine/random.h"
#include "loaders/model_loader.h"
#include "tests/cli_fixture.h"
#include "tests/signed_file.h"

namespace kvfold::testing {
namespace {

ProjectorTensor gaussian_tensor(std::vector<int64_t> shape, double mean, double deviation, uint64_t seed) {
  int64_t size = 1;
  for (const int64_t n : shape) size *= n;
  Random random(seed);
  ProjectorTensor tensor{std::move(shape), std::vector<float>(static_cast<size_t>(size)), false};
  for (float& x : tensor.data) x = static_cast<float>(mean + deviation * random.gaussian());
  return tensor;
}

class TrainProjector : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    folder_.write("target.gguf",
                  tiny_model({.architecture = "qwen2", .heads = 2, .kv_heads = 1, .seed = 2}).build());
    std::string corpus;
    Random random(3);
    for (int i = 0; i < 16; ++i) {
      std::string text;
      for (int word = 0; word < 40; ++word) {
        for (uint64_t letters = 1 + random.below(6); letters > 0; --letters)
          text += static_cast<char>('a' + random.below(26));
        text += ' ';
      }
      corpus += nlohmann::json{{"id", "t/" + std::to_string(i)},
                               {"split", i < 12 ? "train" : "dev"},
                               {"package", "t"},
                               {"kind", "t"},
                               {"text", text}}
                    .dump() +
                '\n';
    }
    folder_.write("documents.jsonl", corpus);
    ProjectorData start{"ridge", model("tiny.gguf"), model("target.gguf"), {}, {}};
    const int64_t in = row_width(start.source.shape);
    const int64_t out = row_width(start.target.shape);
    auto& t = start.tensors;
    t["ridge.mean_in"] = gaussian_tensor({in}, 0, 1, 4);
    t["ridge.scale_in"] = gaussian_tensor({in}, 1, 0.1, 5);
    t["ridge.down"] = gaussian_tensor({8, in}, 0, 1 / std::sqrt(static_cast<double>(in)), 6);
    t["ridge.up"] = gaussian_tensor({out, 8}, 0, 0.3, 7);
    t["ridge.mean_out"] = gaussian_tensor({out}, 0, 1, 8);
    t["ridge.scale_out"] = gaussian_tensor({out}, 1, 0.1, 9);
    start.notes = {{"trained_on", ""}, {"chosen_on", ""}};
    const Status saved = save_projector(start, folder_.file("ridge.safetensors"));
    ASSERT_TRUE(saved.ok()) << saved.message();
  }
  ProjectorModel model(const std::string& name) const {
    const Result<ModelSource> source = load_model_source(folder_.file(name));
    const ModelConfig& c = source->config;
    return {source->fingerprint, c.name, {c.layers, c.kv_heads, c.head_dim}};
  }
  static std::string command(const std::string& out, const std::string& source = "tiny.gguf") {
    return "train_projector --source " + source +
           " --target target.gguf --corpus documents.jsonl --from "
           "ridge.safetensors "
           "--kind fuser --hidden 6 --window 1 --steps 12 --batch 3 --evaluate-every 3 --save-every 2 "
           "--teacher 0.5 "
           "--patience 99 --out " +
           out;
  }
  std::string read(const std::string& name) const { return TemporaryFolder::read(folder_.file(name)); }
};

TEST_F(TrainProjector, KilledTrainingGoesOnToTheSameBytes) {
  const double seconds = seconds_of(command("whole"));
  for (const double part : {0.2, 0.4, 0.6, 0.8})
    if (ends_within(part * seconds, command("cut"))) break;
  const Ran ran = run(command("cut"));
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(read("cut"), read("whole"));
  EXPECT_EQ(read("cut.checkpoint"), read("whole.checkpoint"));
  // Another training does not go on from it.
  const Ran other = run(command("cut") + " --rate 0.01");
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("another training's checkpoint"), std::string::npos) << other.err;
  EXPECT_EQ(run(command("cut") + " --rate 0.01 --fresh").status, 0);
  // Nor does one on other texts of the same names.
  std::string corpus = read("documents.jsonl");
  const size_t at = corpus.rfind("\"text\":\"") + 8;
  corpus[at] = corpus[at] == 'a' ? 'b' : 'a';
  folder_.write("documents.jsonl", corpus);
  const Ran changed = run(command("whole"));
  EXPECT_EQ(changed.status, 2);
  EXPECT_NE(changed.err.find("another training's checkpoint"), std::string::npos) << changed.err;
}

// Notes that left out what the beginning was fitted to would let those texts judge.
TEST_F(TrainProjector, RefusesABeginningThatDoesNotSayWhatItHasSeen) {
  for (const char* note : {"trained_on", "chosen_on"}) {
    SignedFile file = SignedFile::parse(read("ridge.safetensors"));
    file.metadata.erase(std::string("note.") + note);
    folder_.write("ridge.safetensors", file.build());
    const Ran ran = run(command("out"));
    EXPECT_EQ(ran.status, 2);
    EXPECT_NE(ran.err.find(std::string("ridge.safetensors: the projector's notes have no '") + note),
              std::string::npos)
        << ran.err;
    SetUp();
  }
}

TEST_F(TrainProjector, RefusesTheProjectorOfOtherModels) {
  const Ran ran = run(command("out", "target.gguf"));
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("of another model"), std::string::npos) << ran.err;
}

// Killed at random moments, again and again (KVFOLD_KILLS of them): the checkpoint is a whole one, of this
// step or of one before, and the training goes on to the same bytes. No other file is left half-written.
TEST_F(TrainProjector, KilledAtAnyMomentTheCheckpointIsWhole) {
  const char* kills = std::getenv("KVFOLD_KILLS");
  const int count = kills != nullptr ? std::atoi(kills) : 10;
  const double seconds = seconds_of(command("whole"));
  const std::string expected = read("whole");
  Random random(std::random_device{}());
  int died = 0;
  int64_t before = 0;
  for (int i = 0; i < count; ++i) {
    const double moment = seconds * static_cast<double>(random.below(1000)) / 1000 + 0.001;
    const bool ended = ends_within(moment, command("cut"));
    if (!ended) ++died;
    const std::string checkpoint = read("cut.checkpoint");
    if (!checkpoint.empty()) {
      const SignedFile file = SignedFile::parse(checkpoint);
      ASSERT_EQ(SignedFile::parse(file.build()).metadata, file.metadata) << "a checksum is wrong";
      const int64_t step = std::stoll(file.metadata.at("step"));
      ASSERT_GE(step, before);
      ASSERT_EQ(step % 2, 0);
      before = step;
    }
    // The best projector so far is written at each evaluation.
    ASSERT_TRUE(!std::filesystem::exists(folder_.file("cut")) || load_projector(folder_.file("cut")).ok());
    ASSERT_TRUE(!ended || read("cut") == expected);
    if (!ended) continue;
    std::filesystem::remove(folder_.file("cut"));
    std::filesystem::remove(folder_.file("cut.checkpoint"));
    before = 0;
  }
  EXPECT_GT(died, count / 4);
  ASSERT_EQ(run(command("cut")).status, 0);
  EXPECT_TRUE(read("cut") == expected);
}

// Hostile files as a user meets them: exit status 2, the file's name in the last line, nothing written.
TEST_F(TrainProjector, RefusesHostileFiles) {
  ASSERT_EQ(run(command("whole")).status, 0);
  const std::string checkpoint = read("whole.checkpoint");
  const std::string ridge = read("ridge.safetensors");
  const auto refused = [&](const std::string& name, const std::string& bytes) {
    folder_.write(name, bytes);
    const Ran ran = run(command("out"));
    EXPECT_EQ(ran.status, 2) << ran.err;
    const std::string last = ran.err.substr(ran.err.rfind('\n', ran.err.size() - 2) + 1);
    EXPECT_TRUE(last.starts_with("kvfold: ")) << ran.err;
    EXPECT_EQ(wrong_with(last.substr(8, last.size() - 9), name, {}), "");
    EXPECT_EQ(read("out"), "");
  };
  const auto lie = [&](const std::string& name, const std::string& good, const auto& tell) {
    SignedFile file = SignedFile::parse(good);
    tell(file);
    refused(name, file.build());
  };
  for (size_t size = 1; size < checkpoint.size(); size += checkpoint.size() / 12)
    refused("out.checkpoint", checkpoint.substr(0, size));
  for (size_t at = 3; at < checkpoint.size(); at += checkpoint.size() / 12) {
    std::string bad = checkpoint;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    refused("out.checkpoint", bad);
  }
  lie("out.checkpoint", checkpoint, [](SignedFile& f) { f.metadata["curve"] = "[\"x\"]"; });
  lie("out.checkpoint", checkpoint, [](SignedFile& f) { f.metadata["identity"] = "\x1B[2J"; });
  lie("out.checkpoint", checkpoint,
      [](SignedFile& f) { f.set("mean.ridge.up", 0, std::numeric_limits<float>::quiet_NaN()); });
  std::filesystem::remove(folder_.file("out.checkpoint"));

  for (size_t size = 1; size < ridge.size(); size += ridge.size() / 12)
    refused("ridge.safetensors", ridge.substr(0, size));
  // Of the right model by its fingerprint, and of another shape: rows are as long as the model's.
  lie("ridge.safetensors", ridge, [](SignedFile& f) {
    f.metadata["source.layers"] = "1";
    for (const char* name : {"ridge.mean_in", "ridge.scale_in", "ridge.down"}) {
      SignedFile::Tensor& tensor = f.tensors.at(name);
      tensor.shape.back() /= 2;
      tensor.bytes.resize(tensor.bytes.size() / 2);
    }
  });
  lie("ridge.safetensors", ridge,
      [](SignedFile& f) { f.set("ridge.up", 7, std::numeric_limits<float>::infinity()); });
  lie("ridge.safetensors", ridge, [](SignedFile& f) {
    f.tensors.at("ridge.up").shape = {1, 8};
    f.tensors.at("ridge.up").bytes.resize(32);
  });
}

}  // namespace
}  // namespace kvfold::testing
