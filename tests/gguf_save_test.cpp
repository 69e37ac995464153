// GGUF files as they are written: what is read back of each kind of vocabulary, and what is left where
// writing fails.
#include "loaders/gguf_save.h"

#include <gtest/gtest.h>

#include "engine/tokenizer/tokenizer.h"
#include "loaders/gguf.h"
#include "loaders/gguf_model.h"
#include "loaders/model_loader.h"
#include "tests/tiny_model.h"
#include "tests/tokenizer_samples.h"

namespace kvfold::testing {
namespace {

class GgufSave : public ::testing::Test {
 protected:
  // A file of the vocabulary alone.
  GgufFile saved(const VocabularySource& vocabulary) const {
    ModelSource source;
    source.config.architecture = "llama";
    source.vocabulary = vocabulary;
    const Status status = save_gguf_model(source, 0, {}, folder_.file("v.gguf"));
    EXPECT_TRUE(status.ok()) << status.message();
    Result<GgufFile> file = GgufFile::open(folder_.file("v.gguf"));
    EXPECT_TRUE(file.ok()) << file.status().message();
    return std::move(*file);
  }

  TemporaryFolder folder_;
};

TEST_F(GgufSave, ByteLevelVocabulary) {
  VocabularySource v;
  v.model = "gpt2";
  v.pre_tokenizer = "smollm";
  v.tokens = {"a", "b", "ab"};
  v.merges = {"a b"};
  GgufFile file = saved(v);
  EXPECT_EQ(*file.string("tokenizer.ggml.pre"), "smollm");
  EXPECT_EQ(*file.strings("tokenizer.ggml.tokens"), v.tokens);
  EXPECT_EQ(*file.strings("tokenizer.ggml.merges"), v.merges);
  EXPECT_FALSE(*file.boolean("tokenizer.ggml.add_bos_token") ||
               *file.boolean("tokenizer.ggml.add_eos_token"));
  for (const char* key : {"token_type", "scores", "add_space_prefix", "bos_token_id", "eos_token_id",
                          "unknown_token_id", "padding_token_id", "eot_token_id", "eom_token_id"})
    EXPECT_FALSE(file.has(std::string("tokenizer.ggml.") + key)) << key;
  EXPECT_FALSE(file.has("tokenizer.chat_template"));

  v.types = {TokenType::kNormal, TokenType::kControl, TokenType::kUnused};
  v.bos = 0;
  v.eos = 1;
  v.unknown = v.padding = 2;
  v.chat_template = "{{ x }}";
  v.end_tokens = {1, 2};
  v.add_bos = v.add_eos = true;
  file = saved(v);
  EXPECT_EQ(*file.integers("tokenizer.ggml.token_type"), (std::vector<int32_t>{1, 3, 5}));
  const auto id = [&](const char* key) { return *file.integer(std::string("tokenizer.ggml.") + key); };
  EXPECT_EQ(id("bos_token_id"), 0);
  EXPECT_EQ(id("eos_token_id"), 1);
  EXPECT_EQ(id("unknown_token_id"), 2);
  EXPECT_EQ(id("padding_token_id"), 2);
  EXPECT_EQ(id("eot_token_id"), 2);
  EXPECT_FALSE(file.has("tokenizer.ggml.eom_token_id"));
  EXPECT_EQ(*file.string("tokenizer.chat_template"), "{{ x }}");
  EXPECT_TRUE(*file.boolean("tokenizer.ggml.add_bos_token") && *file.boolean("tokenizer.ggml.add_eos_token"));
  v.end_tokens = {2, 1, 0};
  file = saved(v);
  EXPECT_EQ(id("eom_token_id"), 0);
}

TEST_F(GgufSave, SpmVocabulary) {
  VocabularySource v;
  v.model = "llama";
  v.tokens = {"<unk>", "a", "b", "ab", "abb", "z"};
  v.scores = {0, -1, -2, -3, -4, -5};
  v.space_prefix = SpacePrefix::kNone;
  GgufFile file = saved(v);
  EXPECT_EQ(*file.string("tokenizer.ggml.pre"), "default");
  EXPECT_EQ(*file.floats("tokenizer.ggml.scores"), v.scores);
  EXPECT_FALSE(*file.boolean("tokenizer.ggml.add_space_prefix"));
  EXPECT_FALSE(file.has("tokenizer.ggml.merges"));
  // Merges become scores: of a token that two merges make, the first counts.
  v.scores = {};
  v.merges = {"a b", "ab b", "a bb", "x y"};
  v.space_prefix = SpacePrefix::kText;
  v.pre_tokenizer = "llama-bpe";
  file = saved(v);
  EXPECT_EQ(*file.string("tokenizer.ggml.pre"), "llama-bpe");
  EXPECT_EQ(*file.floats("tokenizer.ggml.scores"), (std::vector<float>{0, 0, 0, 0, -1, 0}));
  EXPECT_TRUE(*file.boolean("tokenizer.ggml.add_space_prefix"));
}

// Saved with scores in place of merges, Llama's kind of tokenizer.json gives the ids of Hugging Face still,
// but for two merges of one union.
TEST_F(GgufSave, ScoresOfMergesEncodeAlike) {
  const Result<LoadedVocabulary> loaded = load_vocabulary(data_path("tokenizers/fallback/tokenizer.json"));
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const GgufFile file = saved(loaded->source);
  VocabularySource v = loaded->source;
  v.merges = {};
  v.scores = *file.floats("tokenizer.ggml.scores");
  const auto tokenizer = Tokenizer::create(v, loaded->storage);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::ifstream lines(data_path("tokenizers/fallback/samples.jsonl"));
  int equal = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto sample = nlohmann::json::parse(line);
    equal += (*tokenizer)->encode(sample.at("text").get<std::string>()) ==
             sample.at("ids").at("llama").get<std::vector<TokenId>>();
  }
  EXPECT_GE(equal, 145);  // of 150
}

// Every tensor that there is, under GGUF's name, and its bytes.
TEST_F(GgufSave, Tensors) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    TinyModelOptions options;
    options.architecture = architecture;
    options.tied = architecture != std::string("llama");
    const GgufWriter writer = tiny_model(options);
    const Result<ModelSource> source = load_gguf_model(folder_.write("m.gguf", writer.build()));
    ASSERT_TRUE(source.ok()) << source.status().message();
    std::vector<std::string> expected, found;
    for (const GgufWriter::Tensor& tensor : writer.tensors) expected.push_back(tensor.name);
    for (const GgufTensorName& tensor : gguf_tensor_names(*source)) {
      found.push_back(tensor.name);
      EXPECT_EQ(source->name_of(tensor.view), tensor.name);
      EXPECT_EQ(tensor.query_key, tensor.name.find("attn_q.") != std::string::npos ||
                                      tensor.name.find("attn_k.") != std::string::npos);
      EXPECT_EQ(tensor.matrix, tensor.view.rows > 1);
    }
    std::ranges::sort(expected);
    std::ranges::sort(found);
    EXPECT_EQ(found, expected);
  }
}

TEST_F(GgufSave, ConfigurationAndDivisorsOfRope) {
  ModelSource source;
  source.config.architecture = "llama";
  source.config.name = "a model";
  source.config.rope_factors = {1, 2.5, 8};
  const std::vector<float> ten(10, 3);
  const GgufEntry entry{"ten", {10}, WeightType::kF32, [&] { return std::as_bytes(std::span(ten)); }};
  const std::string path = folder_.file("m.gguf");
  ASSERT_TRUE(save_gguf_model(source, 7, std::span(&entry, 1), path).ok());
  const Result<GgufFile> file = GgufFile::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(*file->integer("general.file_type"), 7);
  EXPECT_EQ(*file->string("general.name"), "a model");
  const GgufTensor* factors = file->tensor("rope_freqs.weight");
  ASSERT_NE(factors, nullptr);
  EXPECT_EQ(factors->view.columns, 3);
  EXPECT_EQ(std::memcmp(factors->view.data, source.config.rope_factors.data(), 12), 0);
  EXPECT_EQ(std::memcmp(file->tensor("ten")->view.data, ten.data(), 40), 0);
}

TEST_F(GgufSave, NothingIsLeftWhereItCannotBeWritten) {
  ModelSource source;
  source.config.architecture = "llama";
  const std::string path = folder_.file("absent/m.gguf");
  const Status status = save_gguf_model(source, 0, {}, path);
  EXPECT_NE(status.message().find(path), std::string::npos) << status.message();
  EXPECT_EQ(folder_.entries(), 0U);
}

}  // namespace
}  // namespace kvfold::testing
