// From a model's name or path to a session: what a name stands for, and which part refuses.
#include "loaders/open.h"

#include <gtest/gtest.h>

#include <limits>

#include "loaders/model_loader.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

namespace fs = std::filesystem;

constexpr const char* kName = "smollm2-135m-instruct";

// A folder of weights of its own, as KVFOLD_WEIGHTS names it.
class Open : public ::testing::Test {
 protected:
  Open() {
    fs::create_directory(weights_);
    setenv("KVFOLD_WEIGHTS", weights_.c_str(), 1);
  }
  ~Open() override { unsetenv("KVFOLD_WEIGHTS"); }

  std::string refusal(const std::string& model, const OpenOptions& options = {}) const {
    const Result<std::unique_ptr<Session>> session = open_session(model, options);
    EXPECT_FALSE(session.ok());
    return session.status().message();
  }
  static std::string resolved(const std::string& model) {
    const Result<std::string> path = resolve_model(model);
    return path.ok() ? *path : path.status().message();
  }

  TemporaryFolder folder_;
  const std::string weights_ = folder_.file("weights");
  const std::string tiny_ = folder_.write("tiny.gguf", tiny_model().build());
};

TEST_F(Open, APathIsTakenAsItIs) {
  EXPECT_EQ(resolved(tiny_), tiny_);
  EXPECT_EQ(resolved(weights_), weights_);
}

TEST_F(Open, ANameOrAliasIsAFileOrFolderOfWeights) {
  const std::string file = weights_ + "/" + kName + ".gguf";
  EXPECT_EQ(resolved("smollm2"),
            file + ": not fetched yet; 'make weights MODEL=smollm2-135m-instruct' fetches it");
  fs::create_directory(weights_ + "/" + kName);
  EXPECT_EQ(resolved("smollm2"), weights_ + "/" + kName);
  EXPECT_EQ(resolved(kName), weights_ + "/" + kName);
  fs::copy(tiny_, file);
  EXPECT_EQ(resolved("smollm2"), file);
  EXPECT_EQ(resolved(kName), file);
}

TEST_F(Open, WithoutAFolderOfItsOwnTheProjectsIsTaken) {
  unsetenv("KVFOLD_WEIGHTS");
  EXPECT_NE(resolved(kName).find("/weights/cache/smollm2-135m-instruct"), std::string::npos);
}

TEST_F(Open, UnknownNamesAreRefusedWithTheKnownOnes) {
  const std::string message = resolved("gpt-5");
  EXPECT_TRUE(message.starts_with("gpt-5: neither a file nor a model of the table; known models: "))
      << message;
  EXPECT_NE(message.find("smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct"), std::string::npos) << message;
  EXPECT_EQ(refusal("gpt-5"), message);
}

TEST_F(Open, AFetchedModelIsFoundByItsFingerprint) {
  const std::string fingerprint = load_model_source(tiny_)->fingerprint;
  EXPECT_EQ(*find_fetched_model(fingerprint), "");
  folder_.write(std::string("weights/") + kName + ".gguf", "damaged");
  EXPECT_EQ(*find_fetched_model(fingerprint), "");
  const std::string file = weights_ + "/qwen2.5-coder-0.5b-instruct.gguf";
  fs::copy(tiny_, file);
  EXPECT_EQ(*find_fetched_model(fingerprint), file);
  EXPECT_EQ(*find_fetched_model("0123456789abcdef"), "");
}

// Knows how much memory it wants, and has none.
class Planner : public Backend {
 public:
  explicit Planner(Result<std::string> plan) : plan_(std::move(plan)) {}
  std::string name() const override { return "planner"; }
  Result<std::string> plan(const ModelSource&, const MemoryWanted&) override { return plan_; }
  Result<std::unique_ptr<Weight>> prepare(const MatrixView&) override { return Status::error("no memory"); }
  Result<std::unique_ptr<Weight>> prepare_table(const MatrixView&) override {
    return Status::error("no memory");
  }
  Result<std::shared_ptr<float>> allocate(size_t) override { return Status::error("no memory"); }
  void upload(std::span<const float>, float*) override {}
  void download(const float*, std::span<float>) override {}
  void likeliest(const float*, int, int, int, std::span<TokenLogit>) override {}
  void embed(const Weight&, std::span<const TokenId>, float*) override {}
  void rms_norm(const float*, int, int, const float*, float, float*) override {}
  void linear(std::span<const Linear>, const LinearInput&) override {}
  void gated_linear(const Weight&, const Weight&, const LinearInput&, float*) override {}
  void store_kv(std::span<const BatchSequence>, int, const float*, const float*) override {}
  void attention(std::span<const BatchSequence>, int, const AttentionShape&, const RopeView&, const float*,
                 float*) override {}

 private:
  Result<std::string> plan_;
};

void add_planner(const std::string& name, const Result<std::string>& plan) {
  add_backend(name, [plan](const BackendOptions&) -> Result<std::shared_ptr<Backend>> {
    return std::shared_ptr<Backend>(std::make_shared<Planner>(plan));
  });
}

TEST_F(Open, TheBackendsPlanIsTold) {
  add_planner("planner", std::string("2 GB of 3"));
  add_planner("silent-planner", std::string());
  add_planner("full-planner", Status::error("9 GB of 3"));
  std::string told;
  OpenOptions options;
  options.backend = "planner";
  EXPECT_EQ(refusal(tiny_, options), "no memory");  // and nobody is told
  options.notice = [&](const std::string& line) { told += line + ";"; };
  EXPECT_EQ(refusal(tiny_, options), "no memory");
  EXPECT_EQ(told, "2 GB of 3;");
  options.backend = "silent-planner";
  EXPECT_EQ(refusal(tiny_, options), "no memory");
  options.backend = "full-planner";
  EXPECT_EQ(refusal(tiny_, options), "9 GB of 3");
  EXPECT_EQ(told, "2 GB of 3;");
}

TEST_F(Open, EachPartMayRefuse) {
  const std::string damaged = folder_.write("damaged.gguf", "GGUF");
  EXPECT_EQ(refusal(damaged), load_model_source(damaged).status().message());
  OpenOptions options;
  options.backend = "abacus";
  EXPECT_TRUE(refusal(tiny_, options).starts_with("backend 'abacus': ")) << refusal(tiny_, options);
  options = {};
  options.session.chunk = 0;
  EXPECT_EQ(refusal(tiny_, options), "chunk 0: expected at least 1 token");
}

TEST_F(Open, QuantisedOnLoadWithAnyNumberOfThreads) {
  TinyModelOptions model;
  model.type = WeightType::kF32;
  const std::string path = folder_.write("f32.gguf", tiny_model(model).build());
  OpenOptions options;
  options.quantization = {false, WeightType::kQ8_0};
  std::vector<std::string> fingerprints;
  for (const int threads : {0, 1, 3}) {
    options.cpu.threads = threads;
    const Result<std::unique_ptr<Session>> session = open_session(path, options);
    ASSERT_TRUE(session.ok()) << session.status().message();
    fingerprints.push_back((*session)->model().source().fingerprint);
    EXPECT_NE(fingerprints.back(), load_model_source(path)->fingerprint);
    EXPECT_EQ(fingerprints.back(), fingerprints.front());
  }
}

TEST_F(Open, WhatIsNotFiniteIsNotQuantised) {
  TinyModelOptions model;
  model.type = WeightType::kF32;
  GgufWriter writer = tiny_model(model);
  for (GgufWriter::Tensor& tensor : writer.tensors)
    if (tensor.name == "blk.1.ffn_up.weight") {
      constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
      std::memcpy(&tensor.data[400], &kNone, sizeof kNone);
    }
  const std::string path = folder_.write("nan.gguf", writer.build());
  OpenOptions options;
  options.quantization = {false, WeightType::kQ8_0};
  const std::string message = refusal(path, options);
  EXPECT_TRUE(message.starts_with(path + ": ")) << message;
  EXPECT_NE(message.find("blk.1.ffn_up.weight"), std::string::npos) << message;
}

}  // namespace
}  // namespace kvfold::testing
