// The files of a tokenizer that is opened by itself: tokenizer.json or tokenizer.model, and what stands
// beside it in added_tokens.json, tokenizer_config.json and chat_template.jinja.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "loaders/model_loader.h"
#include "tests/protobuf.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

using Json = nlohmann::ordered_json;

const std::string kModel = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) +
                           piece("a", -1, 1) + bytes(2, number(3, 2)) + bytes(3, number(4, 0));

Json file() {
  return {{"added_tokens",
           {{{"id", 0}, {"content", "<s>"}, {"special", true}}, {{"id", 6}, {"content", "<user>"}}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"model", {{"vocab", {{"a", 2}, {"b", 3}, {"ab", 4}, {"</s>", 1}}}, {"merges", {"a b"}}}}};
}

// A folder with a tokenizer.json, or with a tokenizer.model, and other files.
class Files {
 public:
  explicit Files(const std::string& name) : name_(name) {
    folder_.write(name, name == "tokenizer.json" ? file().dump() : kModel);
  }
  Files& with(const std::string& name, const std::string& text) {
    folder_.write(name, text);
    return *this;
  }
  Files& with(const std::string& name, const char* text) { return with(name, std::string(text)); }
  Files& with(const std::string& name, const Json& json) { return with(name, json.dump()); }
  void make_folder(const std::string& name) const { std::filesystem::create_directory(folder_.file(name)); }

  Result<LoadedVocabulary> load() const { return load_vocabulary(folder_.file(name_)); }
  VocabularySource good() {
    Result<LoadedVocabulary> loaded = load();
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    if (!loaded.ok()) return {};
    storage_ = loaded->storage;
    return loaded->source;
  }
  // The message without the folder before it.
  std::string refusal() const {
    const Result<LoadedVocabulary> loaded = load();
    if (loaded.ok()) return "it is taken";
    const std::string& message = loaded.status().message();
    EXPECT_TRUE(message.starts_with(folder_.file(""))) << message;
    return message.substr(folder_.file("").size());
  }

 private:
  TemporaryFolder folder_;
  std::string name_;
  std::shared_ptr<const void> storage_;
};

const std::string kJson = "tokenizer.json";
const std::string kBinary = "tokenizer.model";
const std::string kConfig = "tokenizer_config.json";
const std::string kAdded = "added_tokens.json";
const std::string kTemplate = "chat_template.jinja";

TEST(TokenizerFiles, TokensOfTokenizerJson) {
  Files files(kJson);
  const VocabularySource v = files.good();
  EXPECT_EQ(v.model, "gpt2");
  EXPECT_EQ(v.tokens, (std::vector<std::string_view>{"<s>", "</s>", "a", "b", "ab", "[PAD5]", "<user>"}));
  EXPECT_EQ(v.types, (std::vector<TokenType>{TokenType::kControl, TokenType::kNormal, TokenType::kNormal,
                                             TokenType::kNormal, TokenType::kNormal, TokenType::kUnused,
                                             TokenType::kUserDefined}));
  EXPECT_EQ(v.merges, (std::vector<std::string_view>{"a b"}));
  EXPECT_EQ(v.bos, -1);
  EXPECT_FALSE(v.add_bos || v.add_eos);
  EXPECT_EQ(v.chat_template, "");
}

TEST(TokenizerFiles, MergesAsTextsOrPairs) {
  Json pairs = file();
  pairs["model"]["merges"] = Json::array({Json::array({"a", "b"})});
  EXPECT_EQ(Files(kJson).with(kJson, pairs).good().merges.size(), 1U);
  const auto refused = [](const Json& merge, const std::string& found) {
    Json json = file();
    json["model"]["merges"] = Json::array({merge});
    EXPECT_EQ(Files(kJson).with(kJson, json).refusal(), "tokenizer.json: key 'model.merges[0]': found " +
                                                            found +
                                                            ", expected two tokens whose union is a token");
  };
  refused("a", "the string 'a'");
  refused("x b", "the string 'x b'");
  refused("a x", "the string 'a x'");
  refused("b a", "the string 'b a'");
  refused(5, "the number 5");
  refused({"a"}, "an array of 1");
  refused({"a", 5}, "an array of 2");
  refused({5, "b"}, "an array of 2");
}

// tokenizers keeps the rank of the last.
TEST(TokenizerFiles, OfEqualMergesTheLastCounts) {
  Json json = file();
  json["model"]["vocab"]["aa"] = 5;
  json["model"]["merges"] = {"a b", "a a", "a b"};
  EXPECT_EQ(Files(kJson).with(kJson, json).good().merges, (std::vector<std::string_view>{"a a", "a b"}));
}

TEST(TokenizerFiles, AddedTokensThatAreRefused) {
  const auto refused = [](const Json& token, const std::string& message) {
    Json json = file();
    json["added_tokens"][1] = token;
    EXPECT_EQ(Files(kJson).with(kJson, json).refusal(), "tokenizer.json: key 'added_tokens[1]" + message);
  };
  // Of a file of n bytes there are no more than n tokens, and room for no more is made.
  const auto bad_id = [](const Json& id, const std::string& found) {
    Json json = file();
    json["added_tokens"][1] = {{"id", id}, {"content", "<x>"}};
    EXPECT_EQ(Files(kJson).with(kJson, json).refusal(), "tokenizer.json: key 'added_tokens[1].id': found " +
                                                            found + ", expected an id below " +
                                                            std::to_string(json.dump().size()));
  };
  refused(5, "': found the number 5, expected an object");
  refused({{"id", 6}}, ".content': found none, expected a string");
  refused({{"id", 6}, {"content", ""}}, ".content': found an empty string, expected a token's text");
  for (const char* key : {"lstrip", "rstrip", "single_word"}) {
    refused({{"id", 6}, {"content", "<x>"}, {key, true}},
            std::string(".") + key + "': found true for '<x>', expected false");
    refused({{"id", 6}, {"content", "<x>"}, {key, 1}},
            std::string(".") + key + "': found the number 1, expected true or false");
  }
  for (const char* key : {"special", "normalized"})
    refused({{"id", 6}, {"content", "<x>"}, {key, 1}},
            std::string(".") + key + "': found the number 1, expected true or false");
  refused({{"content", "<x>"}}, ".id': found none, expected an integer");
  bad_id("6", "the string '6'");
  bad_id(1 << 23, "the number 8388608");
  refused({{"id", 2}, {"content", "<x>"}}, ".id': found id 2, expected another, as that is 'a'");
  Json json = file();
  json["added_tokens"] = "none";
  EXPECT_EQ(Files(kJson).with(kJson, json).refusal(),
            "tokenizer.json: key 'added_tokens': found the string 'none', expected an array");
  json.erase("added_tokens");
  EXPECT_EQ(Files(kJson).with(kJson, json).good().tokens[0], "[PAD0]");
}

// As SentencePiece has them, with what the Llama tokenizers of transformers add.
TEST(TokenizerFiles, TokensBesideTokenizerModel) {
  Files files(kBinary);
  EXPECT_EQ(files.good().tokens, (std::vector<std::string_view>{"<unk>", "<s>", "</s>", "a"}));
  EXPECT_EQ(files.good().space_prefix, SpacePrefix::kSegment);
  files.with(kAdded, {{"<pad>", 5}, {"a", 3}});
  files.with(kConfig, {{"legacy", false},
                       {"pad_token", "<pad>"},
                       {"added_tokens_decoder",
                        {{"1", {{"content", "<s>"}, {"special", true}}},
                         {"7", {{"content", "<user>"}, {"special", false}}},
                         {"8", {{"content", "<sys>"}, {"special", true}}}}}});
  const VocabularySource v = files.good();
  EXPECT_EQ(v.tokens, (std::vector<std::string_view>{"<unk>", "<s>", "</s>", "a", "[PAD4]", "<pad>", "[PAD6]",
                                                     "<user>", "<sys>"}));
  EXPECT_EQ(v.types,
            (std::vector<TokenType>{TokenType::kUnknown, TokenType::kControl, TokenType::kControl,
                                    TokenType::kControl, TokenType::kUnused, TokenType::kControl,
                                    TokenType::kUnused, TokenType::kUserDefined, TokenType::kControl}));
  EXPECT_EQ(v.scores.size(), v.tokens.size());
  EXPECT_EQ(v.padding, 5);
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(v.space_prefix, SpacePrefix::kText);
}

// A vocabulary without the space before a text keeps none.
TEST(TokenizerFiles, NewSpacesOfAModelWithoutPrefix) {
  const std::string model = piece("<unk>", 0, 2) + piece("a", -1, 1) + piece("b", -1, 1) +
                            bytes(2, number(3, 2)) + bytes(3, number(3, 0) + number(4, 0));
  Files files(kBinary);
  files.with(kBinary, model).with(kConfig, {{"legacy", false}});
  EXPECT_EQ(files.good().space_prefix, SpacePrefix::kNone);
}

TEST(TokenizerFiles, FilesBesideTokenizerModelThatAreRefused) {
  const auto refused = [](const std::string& name, const std::string& text, const std::string& message) {
    EXPECT_EQ(Files(kBinary).with(name, text).refusal(), name + ": " + message);
  };
  refused(kAdded, "[]", "found an array of 0, expected an object");
  // As many ids as the file has bytes, behind the model's four.
  refused(kAdded, R"({"<x>": -1})", "key '<x>': found the number -1, expected an id below 15");
  refused(kAdded, R"({"<x>": 99})", "key '<x>': found the number 99, expected an id below 15");
  refused(kAdded, R"({"<x>": 3})", "key '<x>': found id 3, expected another, as that is 'a'");
  refused(kConfig, "{", "not JSON near offset 2");
  refused(kConfig, R"({"legacy": 1})", "key 'legacy': found the number 1, expected true or false");
  const std::string key = "key 'added_tokens_decoder";
  refused(kConfig, R"({"added_tokens_decoder": []})", key + "': found an array of 0, expected an object");
  const auto decoder = [&](const std::string& token, const std::string& message) {
    refused(kConfig, R"({"added_tokens_decoder": {)" + token + "}}", key + message);
  };
  decoder(R"("7": "<x>")", ".7': found the string '<x>', expected an object");
  decoder(R"("7": {"content": "<x>", "special": 1})",
          ".7.special': found the number 1, expected true or false");
  decoder(R"("7": {})", ".7.content': found none, expected a string");
  decoder(R"("7": {"content": "<x>", "rstrip": true})", ".7.rstrip': found true for '<x>', expected false");
  decoder(R"("x": {"content": "<x>"})", ".x': found the string 'x', expected an id below 55");
  decoder(R"("1.5": {"content": "<x>"})", ".1.5': found the string '1.5', expected an id below 57");
  decoder(R"("7\u0000x": {"content": "<x>"})", ".7?x': found the string '7?x', expected an id below 62");
  decoder(R"("\u001b[31m": {"content": 5})", ".?[31m.content': found the number 5, expected a string");
}

TEST(TokenizerFiles, NamedTokens) {
  Files files(kJson);
  files.with(kConfig, {{"bos_token", "<s>"},
                       {"eos_token", {{"content", "</s>"}, {"lstrip", false}}},
                       {"pad_token", nullptr},
                       {"add_bos_token", true},
                       {"add_eos_token", true}});
  VocabularySource v = files.good();
  EXPECT_EQ(v.bos, 0);
  EXPECT_EQ(v.eos, 1);
  EXPECT_EQ(v.padding, -1);
  EXPECT_TRUE(v.add_bos && v.add_eos);

  const auto refused = [](const Json& config, const std::string& message) {
    EXPECT_EQ(Files(kJson).with(kConfig, config).refusal(), kConfig + ": key '" + message);
  };
  for (const std::string key : {"bos_token", "eos_token", "pad_token"}) {
    refused({{key, "<x>"}}, key + "': found '<x>', expected a token of tokenizer.json");
    refused({{key, 5}}, key + "': found the number 5, expected a string");
    refused({{key, {{"text", "a"}}}}, key + ".content': found none, expected a string");
    refused({{key, {{"content", "<x>"}}}},
            key + ".content': found '<x>', expected a token of tokenizer.json");
  }
  refused({{"add_bos_token", "yes"}}, "add_bos_token': found the string 'yes', expected true or false");
  refused({{"add_eos_token", "yes"}}, "add_eos_token': found the string 'yes', expected true or false");
  refused({{"add_bos_token", true}}, "add_bos_token': found true, expected false, as there is no bos_token");
  refused({{"add_eos_token", true}}, "add_eos_token': found true, expected false, as there is no eos_token");
  EXPECT_EQ(Files(kJson).with(kConfig, "[]").refusal(),
            kConfig + ": found an array of 0, expected an object");
}

Json around(const std::vector<std::string>& parts) {
  Json single = Json::array();
  for (const std::string& part : parts)
    single.push_back(part == "A" ? Json{{"Sequence", Json::object()}}
                                 : Json{{"SpecialToken", {{"id", part}}}});
  Json out = file();
  out["post_processor"] = {{"type", "TemplateProcessing"}, {"single", single}};
  return out;
}

// The post-processor says which tokens are written around a text, and tokenizer_config.json whether they are.
TEST(TokenizerFiles, TokensAroundTheText) {
  Files files(kJson);
  VocabularySource v = files.with(kJson, around({"<s>", "A", "</s>"})).good();
  EXPECT_TRUE(v.add_bos && v.add_eos);
  EXPECT_EQ(v.bos, 0);
  EXPECT_EQ(v.eos, 1);
  v = files.with(kConfig, {{"add_bos_token", false}, {"bos_token", "a"}}).good();
  EXPECT_FALSE(v.add_bos);
  EXPECT_EQ(v.bos, 2);
  v = files.with(kConfig, {{"add_bos_token", true}, {"add_eos_token", false}, {"bos_token", "a"}}).good();
  EXPECT_TRUE(v.add_bos);
  EXPECT_EQ(v.bos, 0);
  EXPECT_EQ(v.eos, -1);
  // Named by the post-processor alone.
  EXPECT_TRUE(files.with(kConfig, {{"add_bos_token", true}, {"add_eos_token", true}}).good().add_eos);

  const std::string message =
      "tokenizer.json: key 'post_processor': found '<x>', expected a token of tokenizer.json";
  EXPECT_EQ(Files(kJson).with(kJson, around({"<x>", "A"})).refusal(), message);
  EXPECT_EQ(Files(kJson).with(kJson, around({"A", "<x>"})).refusal(), message);
}

// tokenizers writes these ids, whatever the vocabulary has.
TEST(TokenizerFiles, IdsOfTokensAroundTheText) {
  const auto with_ids = [](const Json& ids) {
    Json json = around({"<s>", "A", "</s>"});
    json["post_processor"]["special_tokens"] = {{"</s>", {{"id", "</s>"}, {"ids", ids}}}};
    return json;
  };
  EXPECT_EQ(Files(kJson).with(kJson, with_ids(Json::array({1}))).good().eos, 1);
  EXPECT_EQ(Files(kJson).with(kJson, with_ids(Json::array({2}))).refusal(),
            "tokenizer.json: key 'post_processor': found id 2 for '</s>', expected 1, as in the vocabulary");
  for (const Json& ids : {Json::array({1, 1}), Json::array(), Json::array({-1}), Json::array({~uint64_t{0}})})
    EXPECT_EQ(Files(kJson).with(kJson, with_ids(ids)).refusal(),
              "tokenizer.json: key 'post_processor.special_tokens.</s>.ids': found an array of " +
                  std::to_string(ids.size()) + ", expected one token id");
}

TEST(TokenizerFiles, ChatTemplates) {
  const auto text = [](const Json& value) {
    return std::string(Files(kJson).with(kConfig, {{"chat_template", value}}).good().chat_template);
  };
  EXPECT_EQ(text(nullptr), "");
  EXPECT_EQ(text("{{ x }}"), "{{ x }}");
  EXPECT_EQ(text({{{"name", "tool"}, {"template", "t"}}, {{"name", "default"}, {"template", "d"}}}), "d");
  EXPECT_EQ(text({{{"name", "tool"}, {"template", "t"}}}), "");
  EXPECT_EQ(
      std::string(
          Files(kJson).with(kConfig, {{"chat_template", "a"}}).with(kTemplate, "b").good().chat_template),
      "b");

  EXPECT_EQ(Files(kJson).with(kConfig, {{"chat_template", "a"}}).with(kTemplate, "").good().chat_template,
            "");

  const auto refused = [](const Json& value, const std::string& message) {
    EXPECT_EQ(Files(kJson).with(kConfig, {{"chat_template", value}}).refusal(),
              kConfig + ": key 'chat_template" + message);
  };
  refused(5, "': found the number 5, expected a string");
  refused({5}, "[0]': found the number 5, expected an object");
  refused({{{"template", "t"}}}, "[0].name': found none, expected a string");
  refused({{{"name", "default"}, {"template", 5}}}, "[0].template': found the number 5, expected a string");
  const Files files(kJson);
  files.make_folder(kTemplate);
  EXPECT_TRUE(files.refusal().starts_with("chat_template.jinja: ")) << files.refusal();
}

// Names that other programs give these files, and names of nothing.
TEST(TokenizerFiles, Names) {
  const TemporaryFolder folder;
  EXPECT_TRUE(load_vocabulary(folder.write("tokenizer.model.v3", kModel)).ok());
  EXPECT_TRUE(load_vocabulary(folder.write("my-tokenizer.json", file().dump())).ok());
  EXPECT_FALSE(load_vocabulary(folder.file("absent/tokenizer.model")).ok());
  EXPECT_FALSE(load_vocabulary(folder.file("absent/tokenizer.json")).ok());
  EXPECT_FALSE(load_vocabulary(folder.write("text.json", "{}")).ok());
  std::filesystem::create_directory(folder.file("a.model"));
  const Result<LoadedVocabulary> none = load_vocabulary(folder.file("a.model"));
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("a.model/config.json"), std::string::npos)
      << none.status().message();
}

}  // namespace
}  // namespace kvfold::testing
