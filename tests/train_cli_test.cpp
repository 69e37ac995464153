// train_projector as a user runs it: killed at any time it goes on to the same bytes; what does not fit is
// refused.
#include <cmath>

#include "engine/kv/projector.h"
#include "engine/random.h"
#include "loaders/model_loader.h"
#include "tests/cli_fixture.h"

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
  const Ran whole = run(command("whole"));
  ASSERT_EQ(whole.status, 0) << whole.err;
  for (const double seconds : {0.05, 0.1, 0.15, 0.25}) {
    const std::string shell = "cd '" + folder_.file("") + "' && timeout -s KILL " + std::to_string(seconds) +
                              " '" + KVFOLD_PROGRAMS "'/" + command("cut") + " >/dev/null 2>&1 </dev/null";
    if (std::system(shell.c_str()) == 0) break;
  }
  const Ran ran = run(command("cut"));
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(read("cut"), read("whole"));
  EXPECT_EQ(read("cut.checkpoint"), read("whole.checkpoint"));
  // Another training does not go on from it.
  const Ran other = run(command("cut") + " --rate 0.01");
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("another training's checkpoint"), std::string::npos) << other.err;
  EXPECT_EQ(run(command("cut") + " --rate 0.01 --fresh").status, 0);
}

TEST_F(TrainProjector, RefusesTheProjectorOfOtherModels) {
  const Ran ran = run(command("out", "target.gguf"));
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("of another model"), std::string::npos) << ran.err;
}

}  // namespace
}  // namespace kvfold::testing
