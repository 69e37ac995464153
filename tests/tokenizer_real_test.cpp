// The real models' vocabularies against Hugging Face's tokenizers, and the templates in their files against
// Jinja.
#include "tests/tokenizer_samples.h"

namespace kvfold::testing {
namespace {

class RealTokenizer : public ::testing::TestWithParam<const char*> {
 protected:
  std::string path() const {
    return std::string(KVFOLD_SOURCE_DIR) + "/weights/cache/" + GetParam() + ".gguf";
  }
};

// SmolLM2's vocabulary lacks some bytes, and Qwen2.5's text is brought to form C first.
TEST_P(RealTokenizer, GivesTheIdsOfHuggingFace) { expect_ids_of(GetParam(), path(), false); }

TEST_P(RealTokenizer, RendersItsTemplateAsJinjaDoes) {
  const Result<LoadedVocabulary> loaded = load_vocabulary(path());
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const auto chat = ChatTemplate::from(loaded->source);
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  for (const auto& entry : chat_samples())
    if (entry.at("name").get<std::string>() == GetParam()) return expect_chats(entry, *chat);
  FAIL() << "no samples for " << GetParam();
}

INSTANTIATE_TEST_SUITE_P(Models, RealTokenizer,
                         ::testing::Values("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"),
                         [](const auto& test) {
                           return std::string(test.param).starts_with("smol") ? "smollm2" : "qwen2";
                         });

}  // namespace
}  // namespace kvfold::testing
