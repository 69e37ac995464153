// tokenizer.json of BPE with byte fallback, as Llama's vocabularies come: each variant of the pipeline that
// is read, against Hugging Face's library (tests/oracle/make_fallback.py), and those that would give other
// ids, refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/temporary.h"
#include "tests/tokenizer_samples.h"

namespace kvfold::testing {
namespace {

using Json = nlohmann::ordered_json;

const std::string kFolder = data_path("tokenizers/fallback/");

Json base() { return Json::parse(TemporaryFolder::read(kFolder + "tokenizer.json")); }
Json variants() { return Json::parse(TemporaryFolder::read(kFolder + "variants.json")); }

bool is_byte(const std::string& token) { return token.size() == 6 && token.starts_with("<0x"); }

void rename_byte_tokens(Json& model) {
  Json renamed;
  for (const auto& [token, id] : model.at("vocab").items())
    renamed[is_byte(token) ? "<no " + token.substr(3) : token] = id;
  model["vocab"] = renamed;
}

void take_out(Json& added, const std::string& content) {
  for (size_t i = added.size(); i-- > 0;)
    if (added[i].at("content") == content) added.erase(i);
}

// The file of a variant, as the script makes it.
Json file_of(const Json& changes) {
  Json file = base();
  for (const auto& [key, value] : changes.items()) {
    if (value == "without <unk>") {
      take_out(file[key], "<unk>");
    } else if (key != "model") {
      file[key] = value;
    } else {
      for (const auto& [inner, changed] : value.items()) {
        if (changed == "without byte tokens") {
          rename_byte_tokens(file["model"]);
        } else {
          file["model"][inner] = changed;
        }
      }
    }
  }
  return file;
}

Result<std::shared_ptr<const Tokenizer>> open_tokenizer(const Json& file) {
  const TemporaryFolder folder;
  KVFOLD_ASSIGN_OR_RETURN(LoadedVocabulary loaded,
                          load_vocabulary(folder.write("tokenizer.json", file.dump())));
  return Tokenizer::create(std::move(loaded.source), std::move(loaded.storage));
}

// U+2581 in a text is a space ever after.
std::string with_spaces(std::string_view text) {
  constexpr std::string_view kBar = "\xE2\x96\x81";
  std::string out;
  for (; !text.empty(); text.remove_prefix(text.starts_with(kBar) ? kBar.size() : 1))
    out += text.starts_with(kBar) ? ' ' : text[0];
  return out;
}

// A prefix that the text has already is not written, and so is lost on the way back.
bool comes_back(const std::string& name) {
  return name == "llama" || name == "replace" || name == "replace-sequence" || name == "never" ||
         name == "old-never";
}

TEST(Fallback, GivesTheIdsOfHuggingFace) {
  const Json all = variants();
  EXPECT_EQ(all.size(), 15U);
  for (const auto& [name, changes] : all.items()) {
    const auto tokenizer = open_tokenizer(file_of(changes));
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status().message();
    std::ifstream lines(kFolder + "samples.jsonl");
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      const auto sample = nlohmann::json::parse(line);
      const auto text = sample.at("text").get<std::string>();
      const auto& expected =
          sample.at("ids").contains(name) ? sample.at("ids").at(name) : sample.at("ids").at("llama");
      const std::vector<TokenId> ids = (*tokenizer)->encode(text);
      ASSERT_EQ(ids, expected.get<std::vector<TokenId>>()) << name << ": " << text;
      if (comes_back(name)) {
        ASSERT_EQ((*tokenizer)->decode(ids), with_spaces(text)) << name;
      }
    }
    EXPECT_EQ(count, 150);
  }
}

void expect_refused(const std::function<void(Json&)>& change, const std::string& message) {
  Json file = base();
  change(file);
  const auto tokenizer = open_tokenizer(file);
  ASSERT_FALSE(tokenizer.ok()) << "expected: " << message;
  const std::string& found = tokenizer.status().message();
  EXPECT_TRUE(found.ends_with("tokenizer.json: " + message)) << found;
}

// Tokens that are matched in the normalised text: "<|user|>" would swallow the space before it.
TEST(Fallback, NormalizedTokensAreRefusedBehindANormaliser) {
  const std::string expected =
      ", expected false, as the normaliser changes the text that it would be matched in";
  expect_refused([](Json& file) { file["added_tokens"][3]["normalized"] = true; },
                 "key 'added_tokens[3].normalized': found true for '<|user|>'" + expected);
  expect_refused([](Json& file) { file["added_tokens"][1]["normalized"] = "yes"; },
                 "key 'added_tokens[1].normalized': found the string 'yes', expected true or false");
  Json file = file_of(variants().at("first"));
  for (Json& token : file["added_tokens"]) token["normalized"] = true;
  EXPECT_TRUE(open_tokenizer(file).ok());
}

// Old files of Llama have it so. The library finds "<s>" in front of a text alone.
TEST(Fallback, NormalizedControlTokensAreTakenWhereTheyStand) {
  Json file = base();
  for (Json& token : file["added_tokens"])
    if (token["special"]) token["normalized"] = true;
  const auto tokenizer = open_tokenizer(file);
  const auto plain = open_tokenizer(base());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  const std::vector<TokenId> ids = (*tokenizer)->encode("ok<s>ok");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), file["added_tokens"][1]["id"].get<TokenId>()), 1);
  EXPECT_EQ(ids, (*plain)->encode("ok<s>ok"));
}

// Where bytes have no tokens, the library writes the unknown one for each character, unless it is told to
// fuse them.
TEST(Fallback, UnknownTokensAreFusedOrRefused) {
  expect_refused(
      [](Json& file) {
        rename_byte_tokens(file["model"]);
        file["model"]["fuse_unk"] = false;
      },
      "key 'model.fuse_unk': found false, expected true, as there is no token for byte 0x00");
  expect_refused([](Json& file) { file["model"]["fuse_unk"] = 1; },
                 "key 'model.fuse_unk': found the number 1, expected true or false");
  expect_refused([](Json& file) { file["model"]["unk_token"] = 0; },
                 "key 'model.unk_token': found the number 0, expected a string");
  expect_refused([](Json& file) { file["model"]["unk_token"] = "[UNK]"; },
                 "key 'model.unk_token': found '[UNK]', expected a token of tokenizer.json");
  Json file = base();
  file["model"]["fuse_unk"] = false;  // never asked, as every byte has a token
  EXPECT_TRUE(open_tokenizer(file).ok());
}

// Byte-level BPE: a byte that has no token is left out, or is the token that the file names. The ids are
// those of `tokenizers` 0.23.3.
TEST(Fallback, BytesWithoutTokensAreLeftOutOrUnknown) {
  Json file = Json::parse(TemporaryFolder::read(data_path("tokenizers/gpt-2/tokenizer.json")));
  const std::vector<std::string> lacking = {"\u00C3", "\u00A9", "z"};  // the bytes of "\u00E9", and of "z"
  const auto lacks = [&](const std::string& token) {
    return std::any_of(lacking.begin(), lacking.end(),
                       [&](const std::string& c) { return token.find(c) != std::string::npos; });
  };
  Json vocab = Json::object();
  for (const auto& [token, id] : file["model"]["vocab"].items())
    if (!lacks(token)) vocab[token] = id;
  Json merges = Json::array();
  for (const Json& merge : file["model"]["merges"])
    if (!lacks(merge.is_string() ? merge.get<std::string>() : merge.dump())) merges.push_back(merge);
  file["model"]["vocab"] = vocab;
  file["model"]["merges"] = merges;
  struct Way {
    Json unknown;
    bool fuse;
    std::vector<TokenId> ids;
  };
  const Way ways[] = {{nullptr, false, {67, 1172, 223}},
                      {"", false, {67, 1172, 223}},  // GPT-2's own file names an empty one
                      {"<|endoftext|>", false, {67, 223, 0, 0, 0, 0, 68, 223, 0}},
                      {"<|endoftext|>", true, {67, 223, 0, 68, 223, 0}}};
  for (const Way& way : ways) {
    file["model"]["unk_token"] = way.unknown;
    file["model"]["fuse_unk"] = way.fuse;
    const auto tokenizer = open_tokenizer(file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    EXPECT_EQ((*tokenizer)->encode("a zz\u00E9b z"), way.ids) << way.unknown << " " << way.fuse;
  }
}

}  // namespace
}  // namespace kvfold::testing
