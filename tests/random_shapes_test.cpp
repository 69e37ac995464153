// Random models of small shapes: types, vocabulary and bytes. Those of full size are in
// random_model_real_test.cpp.
#include "loaders/random_model.h"

#include <gtest/gtest.h>

#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/tokenizer.h"
#include "loaders/model_loader.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

constexpr RandomModelShape kLlama{"small", "llama", 8, 256, 4, 2, 512, 500, 128, 1e4F, 1e-5F, false, "", 0};
constexpr RandomModelShape kQwen{"small", "qwen2", 2, 64, 1, 1, 96, 500, 128, 1e6F, 1e-6F, true, "qwen2", 20};

ModelSource made(const RandomModelShape& shape, RandomTypes types) {
  const TemporaryFolder folder;
  const std::string path = folder.file("random.gguf");
  const Status status = make_random_model(shape, types, 1, path);
  EXPECT_TRUE(status.ok()) << status.message();
  Result<ModelSource> source = load_model_source(path);
  EXPECT_TRUE(source.ok()) << source.status().message();
  return source.ok() ? std::move(*source) : ModelSource();
}

void expect_text_comes_back(const ModelSource& source, const char* chat_name) {
  const auto tokenizer = Tokenizer::create(source.vocabulary, source.storage);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const std::string text = "Three words, 12 caf\xC3\xA9s \xF0\x9F\x98\x80";
  EXPECT_EQ((*tokenizer)->decode((*tokenizer)->encode(text), false), text);
  const Result<ChatTemplate> chat = ChatTemplate::from(source.vocabulary);
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  EXPECT_EQ(chat->name(), chat_name);
}

// Sensitive matrices keep more bits in the first and last eighth of the layers, and in every third between.
TEST(RandomModel, OfWholeBlocks) {
  const ModelSource source = made(kLlama, RandomTypes::kQ4_K_M);
  ASSERT_EQ(source.layers.size(), 8U);
  for (size_t i = 0; i < 8; ++i) {
    const WeightType sensitive = i == 0 || i == 3 || i == 6 || i == 7 ? WeightType::kQ6_K : WeightType::kQ4_K;
    EXPECT_EQ(source.layers[i].wv.type, sensitive) << i;
    EXPECT_EQ(source.layers[i].down.type, sensitive) << i;
    EXPECT_EQ(source.layers[i].wq.type, WeightType::kQ4_K) << i;
    EXPECT_EQ(source.layers[i].bq.data, nullptr);
  }
  EXPECT_FALSE(source.tied_output);
  EXPECT_EQ(source.output.type, WeightType::kQ6_K);
  EXPECT_EQ(source.embedding.type, WeightType::kQ4_K);
  EXPECT_EQ(source.vocabulary.model, "llama");
  EXPECT_EQ(source.vocabulary.tokens.size(), 500U);
  EXPECT_EQ(source.vocabulary.scores.size(), 500U);
  expect_text_comes_back(source, "zephyr");
}

TEST(RandomModel, OfRowsThatBlocksDoNotDivide) {
  const ModelSource source = made(kQwen, RandomTypes::kQ4_K_M);
  EXPECT_TRUE(source.tied_output);
  EXPECT_EQ(source.embedding.type, WeightType::kQ8_0);
  EXPECT_EQ(source.layers.at(1).wq.type, WeightType::kQ5_0);
  EXPECT_EQ(source.layers.at(1).wv.type, WeightType::kQ8_0);
  EXPECT_NE(source.layers.at(1).bq.data, nullptr);
  EXPECT_EQ(source.config.rope_base, 1e6F);
  EXPECT_EQ(source.vocabulary.tokens.size(), 500U);
  EXPECT_EQ(source.vocabulary.types[479], TokenType::kControl);
  EXPECT_EQ(source.vocabulary.types[480], TokenType::kUnused);
  EXPECT_EQ(source.vocabulary.tokens[480], "[PAD480]");
  expect_text_comes_back(source, "chatml");
}

TEST(RandomModel, OfQ4_0) {
  const ModelSource llama = made(kLlama, RandomTypes::kQ4_0);
  EXPECT_EQ(llama.output.type, WeightType::kQ6_K);
  for (const LayerTensors& layer : llama.layers) EXPECT_EQ(layer.wv.type, WeightType::kQ4_0);
  EXPECT_EQ(made(kQwen, RandomTypes::kQ4_0).embedding.type, WeightType::kQ8_0);
}

TEST(RandomModel, TheSeedSaysTheBytes) {
  const TemporaryFolder folder;
  const auto bytes = [&](uint64_t seed) {
    EXPECT_TRUE(make_random_model(kQwen, RandomTypes::kQ4_0, seed, folder.file("r.gguf")).ok());
    return TemporaryFolder::read(folder.file("r.gguf"));
  };
  const std::string first = bytes(1);
  EXPECT_EQ(bytes(1), first);
  EXPECT_NE(bytes(2), first);
}

TEST(RandomModel, NamesAndPathsThatAreRefused) {
  const TemporaryFolder folder;
  const Status unknown = make_random_model("gpt-5", RandomTypes::kQ4_0, 0, folder.file("x.gguf"));
  EXPECT_EQ(unknown.message(),
            "--like gpt-5: expected one of tinyllama-1.1b, smollm-360m, qwen-0.5b, smollm-135m");
  const Status status = make_random_model(kQwen, RandomTypes::kQ4_0, 0, folder.file("absent/x.gguf"));
  EXPECT_NE(status.message().find("absent/x.gguf"), std::string::npos) << status.message();
  EXPECT_EQ(folder.entries(), 0U);
  EXPECT_EQ(random_model_names().size(), 4U);
}

}  // namespace
}  // namespace kvfold::testing
