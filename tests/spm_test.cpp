// The SPM tokenizer against the `sentencepiece` library (tests/oracle/make_spm.py), and tokenizer.model files
// that are broken.
#include "engine/tokenizer/spm.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/random.h"
#include "loaders/model_loader.h"
#include "loaders/sentencepiece_model.h"
#include "tests/protobuf.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

const std::string kFolder = std::string(KVFOLD_SOURCE_DIR) + "/tests/data/tokenizers/";

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& path,
                                                const std::function<void(VocabularySource&)>& change = {}) {
  Result<LoadedVocabulary> loaded = load_vocabulary(path);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  if (!loaded.ok()) return nullptr;
  if (change) change(loaded->source);
  Result<std::shared_ptr<const Tokenizer>> made = Tokenizer::create(loaded->source, loaded->storage);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return made.ok() ? *made : nullptr;
}

// U+2581 in a text is a space ever after.
std::string with_spaces(std::string_view text) {
  constexpr std::string_view kBar = "\xE2\x96\x81";
  std::string out;
  for (; !text.empty(); text.remove_prefix(text.starts_with(kBar) ? kBar.size() : 1))
    out += text.starts_with(kBar) ? ' ' : text[0];
  return out;
}

TEST(Spm, GivesTheIdsOfSentencePiece) {
  const auto tokenizer = open_tokenizer(kFolder + "spm.model");
  ASSERT_NE(tokenizer, nullptr);
  std::ifstream lines(kFolder + "spm.jsonl");
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto sample = nlohmann::json::parse(line);
    const auto text = sample.at("text").get<std::string>();
    const std::vector<TokenId> ids = tokenizer->encode(text, {.parse_special = false, .add_bos = false});
    ASSERT_EQ(ids, sample.at("ids").get<std::vector<TokenId>>()) << line;
    ASSERT_EQ(tokenizer->decode(ids), with_spaces(text));
  }
  EXPECT_EQ(count, 500);
}

TEST(Spm, SpecialTokensSplitTheText) {
  const auto tokenizer = open_tokenizer(kFolder + "spm.model");
  ASSERT_NE(tokenizer, nullptr);
  const TokenId begin = tokenizer->find("<s>");
  const TokenId end = tokenizer->find("</s>");
  const std::vector<TokenId> the = tokenizer->encode("the", {.add_bos = false});
  std::vector<TokenId> expected = {begin};
  expected.insert(expected.end(), the.begin(), the.end());
  expected.push_back(end);
  expected.insert(expected.end(), the.begin(), the.end());
  EXPECT_EQ(tokenizer->encode("the</s>the"), expected);
  EXPECT_EQ(tokenizer->decode(expected), "<s>the</s>the");
  EXPECT_EQ(tokenizer->decode(expected, false), "thethe");
  EXPECT_TRUE(tokenizer->is_end(end));

  const auto once =
      open_tokenizer(kFolder + "spm.model", [](VocabularySource& v) { v.space_prefix = SpacePrefix::kText; });
  EXPECT_EQ(once->encode("the</s> the"), expected);
  EXPECT_EQ(once->decode(expected), "<s>the</s> the");
  const auto never =
      open_tokenizer(kFolder + "spm.model", [](VocabularySource& v) { v.space_prefix = SpacePrefix::kNone; });
  EXPECT_EQ(never->encode(" the</s> the"), expected);
  const auto merged = open_tokenizer(kFolder + "spm.model", [](VocabularySource& v) { v.one_space = true; });
  EXPECT_EQ(merged->encode(" the</s>the"), expected);
}

TEST(Spm, EveryTextComesBack) {
  const auto tokenizer = open_tokenizer(kFolder + "spm.model");
  ASSERT_NE(tokenizer, nullptr);
  Random random(5);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    const int size = 1 + static_cast<int>(random.below(60));
    for (int j = 0; j < size; ++j)
      text += static_cast<char>(i % 2 == 0 ? random.below(256) : "a \xC3\xA9\xE2"[random.below(5)]);
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(text, {.parse_special = false, .add_bos = false})), text);
  }
  EXPECT_TRUE(tokenizer->encode("", {.add_bos = false}).empty());
}

// A text of one byte again and again merges in time that grows little faster than its length.
TEST(Spm, LongTextsAreNoTrouble) {
  const auto tokenizer = open_tokenizer(kFolder + "spm.model");
  ASSERT_NE(tokenizer, nullptr);
  const std::string text(200'000, ' ');
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, {.add_bos = false})), text);
}

// Without byte tokens what the vocabulary lacks is unknown, once for a run of characters.
TEST(Spm, UnknownWithoutByteTokens) {
  VocabularySource source;
  source.model = "llama";
  source.tokens = {"<unk>", "a", "b", "ab", "\xE2\x96\x81"};
  source.types = {TokenType::kUnknown, TokenType::kNormal, TokenType::kNormal, TokenType::kNormal,
                  TokenType::kNormal};
  source.scores = {0, -3, -4, -1, -5};
  source.unknown = 0;
  const auto tokenizer = Tokenizer::create(source, nullptr);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ((*tokenizer)->encode("abxyzb"), (std::vector<TokenId>{4, 3, 0, 2}));
  source.types[3] = TokenType::kUnused;  // merged, and taken apart again
  EXPECT_EQ((*Tokenizer::create(source, nullptr))->encode("ab"), (std::vector<TokenId>{4, 1, 2}));
  source.scores.clear();
  EXPECT_FALSE(Tokenizer::create(source, nullptr).ok());
  source.merges = {"a c"};
  EXPECT_FALSE(Tokenizer::create(source, nullptr).ok());
}

const std::string kPieces =
    piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("a", -1, 1);
const std::string kTrainer = bytes(2, number(3, 2));
const std::string kNormalizer = bytes(3, bytes(1, "identity") + number(4, 0));

struct Broken {
  const char* name;
  std::string file;
  std::vector<std::string> words;
};
void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }
class BrokenModel : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenModel, IsRefused) {
  const TemporaryFolder folder;
  ASSERT_TRUE(read_sentencepiece_model(folder.write("good.model", kPieces + kTrainer + kNormalizer)).ok());
  const std::string path = folder.write("tokenizer.model", GetParam().file);
  const Result<LoadedVocabulary> loaded = load_vocabulary(path);
  ASSERT_FALSE(loaded.ok());
  const std::string& message = loaded.status().message();
  EXPECT_TRUE(message.starts_with(path + ": ")) << message;
  for (const char c : message) ASSERT_TRUE(c >= ' ' && c < 127) << message;
  for (const std::string& word : GetParam().words)
    EXPECT_NE(message.find(word), std::string::npos) << message;
}

const Broken kBroken[] = {
    {"empty", "", {}},
    {"text", "not a model at all", {"offset"}},
    {"no_pieces", kTrainer + kNormalizer, {"pieces"}},
    {"unigram", kPieces + bytes(2, number(3, 1)) + kNormalizer, {"trainer_spec.model_type", "unigram"}},
    {"default_is_unigram", kPieces + kNormalizer, {"trainer_spec.model_type"}},
    {"character_map", kPieces + kTrainer + bytes(3, bytes(2, "xx") + number(4, 0)), {"precompiled_charsmap"}},
    {"strips_spaces", kPieces + kTrainer, {"remove_extra_whitespaces"}},
    {"suffix",
     kPieces + bytes(2, number(3, 2) + number(24, 1)) + kNormalizer,
     {"treat_whitespace_as_suffix"}},
    {"piece_is_number", number(1, 5) + kTrainer + kNormalizer, {"field 1"}},
    {"piece_empty", bytes(1, "") + kTrainer + kNormalizer, {"piece 0"}},
    {"piece_not_utf8", piece("\xFF", 0, 1) + kTrainer + kNormalizer, {"piece 0", "UTF-8"}},
    {"score_infinite", piece("x", std::numeric_limits<float>::infinity(), 1), {"score"}},
    {"type_7", piece("x", 0, 7), {"type 7"}},
    {"no_unknown",
     piece("x", 0, 1) + piece("y", 0, 1) + piece("z", 0, 1) + kTrainer + kNormalizer,
     {"unknown"}},
    {"bos_outside",
     kPieces + bytes(2, number(3, 2) + number(41, 99)) + kNormalizer,
     {"trainer_spec.bos_id", "99"}},
    {"eos_outside",
     kPieces + bytes(2, number(3, 2) + number(42, 4)) + kNormalizer,
     {"trainer_spec.eos_id: found 4, expected an id up to 3, or -1"}},
    {"padding_outside",
     kPieces + bytes(2, number(3, 2) + number(43, 4)) + kNormalizer,
     {"trainer_spec.pad_id"}},
    {"words",
     kPieces + bytes(2, number(3, 3)) + kNormalizer,
     {"trainer_spec.model_type: found 3, expected 2, BPE"}},
    {"keeps_spaces",
     kPieces + kTrainer + bytes(3, number(4, 0) + number(5, 0)),
     {"normalizer_spec.escape_whitespaces: found false, expected true"}},
    {"type_0", piece("x", 0, 0), {"type 0"}},
    {"text_is_number", bytes(1, number(1, 5)), {"piece 0: field 1 of another wire type"}},
    {"score_is_number", bytes(1, bytes(1, "x") + number(2, 5)), {"piece 0: field 2 of another wire type"}},
    {"type_is_text", bytes(1, bytes(1, "x") + bytes(3, "1")), {"piece 0: field 3 of another wire type"}},
    {"piece_cut_short", bytes(1, bytes(1, "x") + "\x80"), {"a number cut short"}},
    {"trainer_cut_short", bytes(2, number(3, 2) + "\x80"), {"a number cut short"}},
    {"normalizer_cut_short", bytes(3, number(4, 0) + "\x80"), {"a number cut short"}},
    {"field_2_to_29", varint(uint64_t{1} << 32) + "x", {"field number 536870912", "536870911"}},
    {"field_0", varint(0) + "x", {"field number 0"}},
    {"wire_3", varint(1 << 3 | 3), {"wire type 3"}},
    {"longer_than_file", varint(1 << 3 | 2) + varint(1000) + "x", {"1000 bytes", "left"}},
    {"longer_than_what_is_left",
     varint(1 << 3 | 2) + varint(3) + "xy",
     {"3 bytes", "the 2 bytes that are left"}},
    {"longer_than_its_message",
     bytes(1, varint(1 << 3 | 2) + varint(3) + "xy") + kTrainer + kNormalizer,
     {"3 bytes", "the 2 bytes that are left"}},
    {"length_2_to_64", varint(1 << 3 | 2) + varint(~uint64_t{0}), {"left"}},
    {"varint_of_11_bytes", std::string(10, '\xFF') + '\x01', {"offset 0", "above 64 bits"}},
    {"varint_endless", std::string(20, '\xFF'), {"varint"}},
};
std::string broken_name(const ::testing::TestParamInfo<Broken>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(, BrokenModel, ::testing::ValuesIn(kBroken), broken_name);

// What is not looked at may stand anywhere, in any wire type.
TEST(SentencePieceModel, OtherFieldsAreSkipped) {
  const std::string other =
      number(15, 7) + bytes(16, "text") + varint(17 << 3 | 5) + "four" + varint(18 << 3 | 1) + "eighteen";
  const std::string plain = piece("<unk>", 0, 2) + piece("a", -1, 1) + piece("b", -1, 1);
  const TemporaryFolder folder;
  const auto read = [&](const std::string& file) {
    Result<SentencePieceModel> model = read_sentencepiece_model(folder.write("tokenizer.model", file));
    EXPECT_TRUE(model.ok()) << model.status().message();
    return model.ok() ? model->source : VocabularySource();
  };
  const VocabularySource v =
      read(other + plain + bytes(1, bytes(1, "c") + other) + bytes(4, "self-test") +
           bytes(2, other + number(3, 2) + number(24, 0) + number(41, ~uint64_t{0}) + number(42, 3) +
                        number(43, 0)) +
           bytes(3, other + bytes(2, "") + number(3, 0) + number(4, 0) + number(5, 1)) + other);
  EXPECT_EQ(v.scores, (std::vector<float>{0, -1, -1, 0}));
  EXPECT_EQ(v.types[3], TokenType::kNormal);
  EXPECT_EQ((std::vector<TokenId>{v.unknown, v.bos, v.eos, v.padding}), (std::vector<TokenId>{0, -1, 3, 0}));
  EXPECT_FALSE(v.add_bos);
  EXPECT_EQ(v.space_prefix, SpacePrefix::kNone);
  EXPECT_EQ(read(plain + kTrainer + kNormalizer).space_prefix, SpacePrefix::kSegment);
}

// Cut short anywhere, the file is refused or read, and never read past its end.
TEST(SentencePieceModel, TruncatedAnywhere) {
  const std::string whole = kPieces + kTrainer + kNormalizer;
  const TemporaryFolder folder;
  for (size_t size = 1; size < whole.size(); ++size) {
    const std::string path = folder.write("tokenizer.model", whole.substr(0, size));
    EXPECT_FALSE(read_sentencepiece_model(path).ok()) << size;
  }
}

}  // namespace
}  // namespace kvfold::testing
