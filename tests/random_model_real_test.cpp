// Random models at the full size of TinyLlama 1.1B, SmolLM 360M and 135M and Qwen 0.5B. Too large for the
// sanitizers, so kept with the tests on real weights.
#include "loaders/random_model.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/formats/formats.h"
#include "loaders/model_loader.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

struct Expected {
  const char* name;
  int layers, kv_heads, vocab_size;
  const char* chat;
};

TEST(RandomModel, HasTheShapeOfItsModel) {
  const TemporaryFolder folder;
  for (const Expected& e :
       {Expected{"tinyllama-1.1b", 22, 4, 32000, "zephyr"}, Expected{"qwen-0.5b", 24, 2, 151936, "chatml"},
        Expected{"smollm-135m", 30, 3, 49152, "chatml"}, Expected{"smollm-360m", 32, 5, 49152, "chatml"}}) {
    const std::string path = folder.file("random.gguf");
    const Status status = make_random_model(e.name, RandomTypes::kQ4_K_M, 1, path);
    ASSERT_TRUE(status.ok()) << status.message();
    const Result<ModelSource> source = load_model_source(path);
    ASSERT_TRUE(source.ok()) << source.status().message();
    EXPECT_EQ(source->config.layers, e.layers);
    EXPECT_EQ(source->config.kv_heads, e.kv_heads);
    EXPECT_EQ(source->config.head_dim, 64);
    EXPECT_EQ(source->config.vocab_size, e.vocab_size);
    const auto tokenizer = Tokenizer::create(source->vocabulary, source->storage);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    const std::string text = "Three words, 12 caf\xC3\xA9s \xF0\x9F\x98\x80";
    EXPECT_EQ((*tokenizer)->decode((*tokenizer)->encode(text), false), text);
    EXPECT_LT((*tokenizer)->encode("three words").size(), 11U);  // merges are at work
    const Result<ChatTemplate> chat = ChatTemplate::from(source->vocabulary);
    ASSERT_TRUE(chat.ok()) << chat.status().message();
    EXPECT_EQ(chat->name(), e.chat);
  }
}

}  // namespace
}  // namespace kvfold::testing
