// Byte-level BPE with each pre-tokenizer against Hugging Face's own, and chat templates against Jinja. The
// real models' vocabularies are in tokenizer_real_test.cpp.
#include <gmock/gmock.h>

#include "engine/tokenizer/pre_tokenizer.h"
#include "tests/tokenizer_samples.h"

namespace kvfold::testing {
namespace {

class Bpe : public ::testing::TestWithParam<const char*> {};

// qwen2 brings text to form C, so that not every text comes back as it was.
TEST_P(Bpe, GivesTheIdsOfHuggingFace) {
  const std::string name = GetParam();
  expect_ids_of(name, data_path("tokenizers/" + name + "/tokenizer.json"), name != "qwen2");
}

INSTANTIATE_TEST_SUITE_P(PreTokenizers, Bpe, ::testing::Values("gpt-2", "smollm", "qwen2", "llama-bpe"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::erase(name, '-');
                           return name;
                         });

// A vocabulary that cannot write a byte leaves it out.
// Expected is what `tokenizers` makes of them (0.23, normalizers.NFC).
TEST(Normalisation, EndsWithUnicode9) {
  EXPECT_EQ(normalize_nfc("e\u0302\u0323"), "\u1EC7");
  EXPECT_EQ(normalize_nfc("a\u0345\u0334"), "a\u0334\u0345");
  // Marks of Unicode 11, 12 and 14, and a composite of Unicode 13.
  for (const char* same : {"a\u0345\u07FD", "a\u07FD\u0334", "a\u07FD\u0301", "\u0EBA\u0EC8", "\u0EC8\u0EBA",
                           "\u0C55\u0C3C", "\U00011935\U00011930", "\U00011938"})
    EXPECT_EQ(normalize_nfc(same), same);
  EXPECT_EQ(normalize_nfc("e\u0323\u07FDe\u0302"), "\u1EB9\u07FD\u00EA");
}

TEST(BpeTokens, ByteWithoutTokenIsLeftOut) {
  VocabularySource source;
  source.model = "gpt2";
  source.pre_tokenizer = "gpt-2";
  source.tokens = {"<unk>", "a", "b", "ab"};
  source.merges = {"a b"};
  source.unknown = 0;
  const auto tokenizer = Tokenizer::create(source, nullptr);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ((*tokenizer)->encode("acb"), (std::vector<TokenId>{3}));
}

VocabularySource with_template(const nlohmann::json& entry, const std::string& text, std::string& bos,
                               std::string& eos) {
  bos = entry.at("bos").get<std::string>();
  eos = entry.at("eos").get<std::string>();
  VocabularySource source;
  source.tokens = {bos, eos};
  source.bos = 0;
  source.eos = 1;
  source.chat_template = text;
  return source;
}

TEST(Chat, RendersAsJinjaDoes) {
  int templates = 0;
  for (const auto& entry : chat_samples()) {
    if (entry.at("template").is_null()) continue;  // inside of a real model's file
    const auto text = entry.at("template").get<std::string>();
    std::string bos, eos;
    const auto chat = ChatTemplate::from(with_template(entry, text, bos, eos));
    ASSERT_TRUE(chat.ok()) << chat.status().message();
    EXPECT_EQ(chat->name(), entry.at("name").get<std::string>());
    expect_chats(entry, *chat);
    ++templates;
  }
  EXPECT_EQ(templates, 3);
}

TEST(Chat, RefusesWhatItDoesNotKnow) {
  VocabularySource source;
  EXPECT_THAT(ChatTemplate::from(source).status().message(), ::testing::HasSubstr("no chat template"));
  source.chat_template = "{% for m in messages %}<start_of_turn>{{ m.role }}{% endfor %}";
  EXPECT_THAT(ChatTemplate::from(source).status().message(),
              ::testing::HasSubstr("ChatML, Zephyr and Llama-2"));
  source.chat_template = "<|im_start|><|im_end|>";
  const auto chat = ChatTemplate::from(source);
  ASSERT_TRUE(chat.ok());
  EXPECT_FALSE(chat->render(std::vector<ChatMessage>{{"tool", "x"}}, true).ok());
  EXPECT_FALSE(chat->render(std::vector<ChatMessage>{{"user", "x"}, {"system", "y"}}, true).ok());
}

}  // namespace
}  // namespace kvfold::testing
