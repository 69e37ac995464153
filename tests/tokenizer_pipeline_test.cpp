// The steps around a vocabulary in tokenizer.json: each that is known, and the one line by which others are
// refused. What texts become is compared with Hugging Face's library in fallback_test.cpp and
// tokenizer_test.cpp.
#include "loaders/tokenizer_pipeline.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

namespace kvfold::testing {
namespace {

using Json = nlohmann::json;

const std::string kBar = "\xE2\x96\x81";  // U+2581
const std::string kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
std::string pattern(const std::string& digits) {
  std::string out = kPattern;
  return out.replace(out.find("DIGITS"), 6, digits);
}

Json sequence(const char* list, const std::vector<Json>& steps) {
  return {{"type", "Sequence"}, {list, steps}};
}
const Json kPrepend = {{"type", "Prepend"}, {"prepend", kBar}};
const Json kReplace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kBar}};
const Json kNfc = {{"type", "NFC"}};
const Json kRegex = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
const Json kPlain = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
const Json kDigits = {{"type", "Digits"}, {"individual_digits", true}};
Json split(const std::string& regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
}
Json metaspace(const Json& more) {
  Json out = {{"type", "Metaspace"}, {"replacement", kBar}, {"split", false}};
  if (!more.empty()) out.update(more);
  return out;
}
Json pre(const std::vector<Json>& steps) { return sequence("pretokenizers", steps); }
Json llama(const std::vector<Json>& steps) { return sequence("normalizers", steps); }

// A file of byte-level BPE, or of BPE with byte fallback, with some keys in place of its own.
Json byte_level(const Json& changes) {
  Json out = {{"model", {{"type", "BPE"}}}, {"pre_tokenizer", kRegex}};
  if (!changes.empty()) out.update(changes);
  return out;
}
Json fallback(const Json& changes) {
  Json out = {{"model", {{"type", "BPE"}, {"byte_fallback", true}}},
              {"normalizer", llama({kPrepend, kReplace})}};
  if (!changes.empty()) out.update(changes);
  return out;
}

Result<TokenizerPipeline> read(const Json& file) {
  const Result<JsonObject> json = JsonObject::parse(file.dump(), "t.json");
  EXPECT_TRUE(json.ok()) << json.status().message();
  return read_tokenizer_pipeline(*json);
}

// All that a pipeline says, in a line.
std::string text_of(const TokenizerPipeline& p) {
  const char* prefixes[] = {"none", "text", "segment"};
  return fmt::format("{} '{}' prefix={} one_space={} normalizes={} begin='{}' end='{}'",
                     p.byte_fallback ? "fallback" : "byte-level", p.pre_tokenizer,
                     prefixes[static_cast<int>(p.space_prefix)], p.one_space, p.normalizes, p.begin_token,
                     p.end_token);
}

TEST(TokenizerPipeline, KnownSteps) {
  const auto expect = [](const Json& file, const std::string& text) {
    const Result<TokenizerPipeline> pipeline = read(file);
    ASSERT_TRUE(pipeline.ok()) << pipeline.status().message() << "\n" << file;
    EXPECT_EQ(text_of(*pipeline), text) << file;
  };
  const std::string none = " prefix=none one_space=false normalizes=false begin='' end=''";
  expect(byte_level({}), "byte-level 'gpt-2'" + none);
  expect(byte_level({{"model", Json::object()}, {"normalizer", nullptr}}), "byte-level 'gpt-2'" + none);
  expect(byte_level(
             {{"model", {{"continuing_subword_prefix", ""}, {"end_of_word_suffix", ""}, {"dropout", 0.0}}}}),
         "byte-level 'gpt-2'" + none);
  expect(byte_level({{"normalizer", llama({})}}), "byte-level 'gpt-2'" + none);
  expect(byte_level({{"pre_tokenizer", pre({kRegex})}}), "byte-level 'gpt-2'" + none);
  expect(byte_level({{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}}}),
         "byte-level 'gpt-2'" + none);
  expect(byte_level({{"pre_tokenizer", pre({kDigits, kRegex})}}), "byte-level 'smollm'" + none);
  expect(byte_level({{"normalizer", kNfc}, {"pre_tokenizer", pre({split(pattern("\\p{N}")), kPlain})}}),
         "byte-level 'qwen2' prefix=none one_space=false normalizes=true begin='' end=''");
  expect(byte_level({{"model", {{"ignore_merges", true}}},
                     {"pre_tokenizer", pre({split(pattern("\\p{N}{1,3}")), kPlain})}}),
         "byte-level 'llama-bpe'" + none);

  const auto spm = [](const char* prefix, bool one_space, bool normalizes) {
    return fmt::format("fallback '' prefix={} one_space={} normalizes={} begin='' end=''", prefix, one_space,
                       normalizes);
  };
  expect(fallback({}), spm("segment", false, true));
  expect(fallback({{"normalizer", kReplace}}), spm("none", false, true));
  const auto with = [](const Json& metaspace) {
    return fallback({{"normalizer", nullptr}, {"pre_tokenizer", metaspace}});
  };
  expect(with(metaspace({})), spm("segment", true, false));
  expect(with(metaspace({{"add_prefix_space", true}})), spm("segment", true, false));
  expect(with(metaspace({{"prepend_scheme", "always"}})), spm("segment", true, false));
  expect(with(metaspace({{"prepend_scheme", "first"}})), spm("text", true, false));
  expect(with(metaspace({{"prepend_scheme", "never"}})), spm("none", true, false));
  expect(with(metaspace({{"prepend_scheme", "never"}, {"add_prefix_space", false}})),
         spm("none", true, false));
  expect(with(pre({metaspace({{"prepend_scheme", "first"}})})), spm("text", true, false));
}

const Json kText = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
Json special(const char* text) { return {{"SpecialToken", {{"id", text}, {"type_id", 0}}}}; }
Json single(const std::vector<Json>& parts) { return {{"type", "TemplateProcessing"}, {"single", parts}}; }
Json post(const Json& step) { return byte_level({{"post_processor", step}}); }

TEST(TokenizerPipeline, TokensAroundTheText) {
  const auto expect = [](const Json& step, const std::string& begin, const std::string& end) {
    const Result<TokenizerPipeline> pipeline = read(post(step));
    ASSERT_TRUE(pipeline.ok()) << pipeline.status().message() << "\n" << step;
    EXPECT_EQ(pipeline->begin_token, begin) << step;
    EXPECT_EQ(pipeline->end_token, end) << step;
  };
  expect(nullptr, "", "");
  expect({{"type", "ByteLevel"}}, "", "");
  expect(single({kText}), "", "");
  expect(single({special("<s>"), kText}), "<s>", "");
  expect(single({kText, special("</s>")}), "", "</s>");
  expect(single({special("<s>"), kText, special("</s>")}), "<s>", "</s>");
  expect(sequence("processors", {{{"type", "ByteLevel"}}, single({special("<s>"), kText})}), "<s>", "");
}

struct Refused {
  Json file;
  std::string message;  // behind the file's name
};

void expect_refused(const std::vector<Refused>& cases) {
  for (const Refused& refused : cases) {
    const Result<TokenizerPipeline> pipeline = read(refused.file);
    ASSERT_FALSE(pipeline.ok()) << refused.file;
    EXPECT_EQ(pipeline.status().message(), "t.json: " + refused.message) << refused.file;
  }
}

TEST(TokenizerPipeline, NamesOfStepsAreShownPrintably) {
  expect_refused(
      {{byte_level({{"pre_tokenizer", {{"type", std::string("\0\x1B\n", 3) + std::string(100, 'x')}}}}),
        "key 'pre_tokenizer': found ???" + std::string(77, 'x') +
            "..., expected the steps of SmolLM (Digits, ByteLevel), GPT-2 (ByteLevel), Qwen 2 or "
            "Llama 3 (Split, ByteLevel)"}});
}

TEST(TokenizerPipeline, OtherModelsAreRefused) {
  const auto model = [](const Json& changes) { return byte_level({{"model", changes}}); };
  expect_refused({
      {Json::object(), "key 'model': found none, expected an object"},
      {model({{"type", 3}}), "key 'model.type': found the number 3, expected a string"},
      {model({{"type", "WordPiece"}}), "key 'model.type': found the string 'WordPiece', expected BPE"},
      {model({{"continuing_subword_prefix", "##"}}),
       "key 'model.continuing_subword_prefix': found the string '##', expected none"},
      {model({{"end_of_word_suffix", false}}),
       "key 'model.end_of_word_suffix': found false, expected a string"},
      {model({{"dropout", 0.5}}), "key 'model.dropout': found the number 0.5, expected none"},
      {model({{"dropout", "none"}}), "key 'model.dropout': found the string 'none', expected a number"},
      {model({{"byte_fallback", 1}}),
       "key 'model.byte_fallback': found the number 1, expected true or false"},
      {model({{"ignore_merges", "no"}}),
       "key 'model.ignore_merges': found the string 'no', expected true or false"},
      {fallback({{"model", {{"byte_fallback", true}, {"ignore_merges", true}}}}),
       "key 'model.ignore_merges': found true, expected false, as the model falls back to bytes"},
      {fallback({{"model", {{"byte_fallback", true}, {"ignore_merges", 0}}}}),
       "key 'model.ignore_merges': found the number 0, expected true or false"},
  });
}

TEST(TokenizerPipeline, StepsOfNoTypeAreRefused) {
  for (const auto& [key, list] : {std::pair("normalizer", "normalizers"),
                                  {"pre_tokenizer", "pretokenizers"},
                                  {"post_processor", "processors"}}) {
    const std::string k = fmt::format("key '{}", key);
    const std::string l = fmt::format("{}.{}", k, list);
    expect_refused({
        {byte_level({{key, "NFC"}}), k + "': found the string 'NFC', expected an object"},
        {byte_level({{key, Json::object()}}), k + ".type': found none, expected a string"},
        {byte_level({{key, {{"type", "Sequence"}}}}), l + "': found none, expected an array"},
        {byte_level({{key, sequence(list, {5})}}), l + "[0]': found the number 5, expected an object"},
        {byte_level({{key, sequence(list, {{{"type", 5}}})}}),
         l + "[0].type': found the number 5, expected a string"},
    });
  }
  const Json unknown = {{"type", "New\nline"}};
  expect_refused({{byte_level({{"normalizer", unknown}}),
                   "key 'normalizer.type': found the string 'New?line', expected NFC, or none"}});
}

TEST(TokenizerPipeline, OtherNormalisersAreRefused) {
  const std::string type = "key 'normalizer.type': found the string ";
  const std::string second = "key 'normalizer.normalizers[1].type': found the string ";
  const std::string expected = ", expected Prepend and Replace of spaces, as Llama's";
  const auto spm = [](const Json& normalizer) { return fallback({{"normalizer", normalizer}}); };

  expect_refused({
      {byte_level({{"normalizer", {{"type", "Lowercase"}}}}), type + "'Lowercase', expected NFC, or none"},
      {byte_level({{"normalizer", kReplace}}), type + "'Replace', expected NFC, or none"},
      {spm(kNfc), type + "'NFC'" + expected},
      {spm(llama({kReplace, kPrepend})), second + "'Prepend'" + expected},
      {spm(llama({kPrepend, kPrepend, kReplace})), second + "'Prepend'" + expected},
      {spm(kPrepend), "key 'normalizer': found Prepend" + expected},
      {fallback({{"normalizer", kPrepend}, {"pre_tokenizer", metaspace({})}}),
       "key 'normalizer': found Prepend" + expected},
      {spm({{"type", "Prepend"}, {"prepend", "_"}}),
       "key 'normalizer.prepend': found the string '_', expected U+2581"},
      {spm({{"type", "Prepend"}}), "key 'normalizer.prepend': found none, expected a string"},
      {spm({{"type", "Replace"}}), "key 'normalizer.pattern': found none, expected an object"},
      {spm({{"type", "Replace"}, {"pattern", {{"Regex", " "}}}}),
       "key 'normalizer.pattern.String': found none, expected a string"},
      {spm({{"type", "Replace"}, {"pattern", {{"String", "  "}}}}),
       "key 'normalizer.pattern.String': found the string '  ', expected a space"},
      {spm({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "_"}}),
       "key 'normalizer.content': found the string '_', expected U+2581"},
  });
}

TEST(TokenizerPipeline, OtherSpacesAreRefused) {
  const auto spm = [](const Json& step) {
    return fallback({{"normalizer", nullptr}, {"pre_tokenizer", step}});
  };
  const std::string key = "key 'pre_tokenizer.";
  expect_refused({
      {spm(nullptr),
       "key 'pre_tokenizer': found none, expected Metaspace, as the model falls back to bytes and the "
       "normaliser leaves spaces"},
      {spm(kRegex),
       key + "type': found the string 'ByteLevel', expected Metaspace, as the model falls back to bytes"},
      {fallback({{"pre_tokenizer", metaspace({})}}),
       key + "type': found the string 'Metaspace', expected no pre-tokenizer, as the normaliser replaces "
             "spaces"},
      {spm({{"type", "Metaspace"}}), key + "replacement': found none, expected a string"},
      {spm(metaspace({{"replacement", " "}})), key + "replacement': found the string ' ', expected U+2581"},
      {spm(metaspace({{"split", true}})), key + "split': found true, expected false"},
      {spm({{"type", "Metaspace"}, {"replacement", kBar}}), key + "split': found true, expected false"},
      {spm(metaspace({{"split", "no"}})), key + "split': found the string 'no', expected true or false"},
      {spm(metaspace({{"prepend_scheme", "last"}})),
       key + "prepend_scheme': found the string 'last', expected always, first or never"},
      {spm(metaspace({{"prepend_scheme", 1}})),
       key + "prepend_scheme': found the number 1, expected a string"},
      {spm(metaspace({{"add_prefix_space", 1}})),
       key + "add_prefix_space': found the number 1, expected true or false"},
      {spm(metaspace({{"add_prefix_space", false}})),
       key + "add_prefix_space': found false, expected true, as prepend_scheme is always"},
      {spm(metaspace({{"add_prefix_space", false}, {"prepend_scheme", "first"}})),
       key + "add_prefix_space': found false, expected true, as prepend_scheme is first"},
  });
}

TEST(TokenizerPipeline, OtherByteLevelStepsAreRefused) {
  const auto one = [](const Json& step) { return byte_level({{"pre_tokenizer", step}}); };
  const auto changed = [](Json step, const Json& changes) {
    step.update(changes);
    return byte_level({{"pre_tokenizer", step}});
  };
  const Json qwen = split(pattern("\\p{N}"));
  const std::string key = "key 'pre_tokenizer.";
  const std::string steps =
      ", expected the steps of SmolLM (Digits, ByteLevel), GPT-2 (ByteLevel), Qwen 2 or Llama 3 (Split, "
      "ByteLevel)";
  expect_refused({
      {one(nullptr), "key 'pre_tokenizer': found none" + steps},
      {one({{"type", "Whitespace"}}), "key 'pre_tokenizer': found Whitespace" + steps},
      {one(pre({kRegex, kDigits})), "key 'pre_tokenizer': found ByteLevel, Digits" + steps},
      {one(pre({kDigits, kDigits, kRegex})), "key 'pre_tokenizer': found Digits, Digits, ByteLevel" + steps},
      {one(pre({{{"type", "Digits"}}, kRegex})), "key 'pre_tokenizer': found Digits, ByteLevel" + steps},
      {one(kPlain), "key 'pre_tokenizer': found ByteLevel" + steps},
      {one({{"type", "Digits"}, {"individual_digits", 1}}),
       key + "individual_digits': found the number 1, expected true or false"},
      {one({{"type", "ByteLevel"}}), key + "add_prefix_space': found true, expected false"},
      {one({{"type", "ByteLevel"}, {"add_prefix_space", ""}}),
       key + "add_prefix_space': found the string '', expected true or false"},
      {changed(kPlain, {{"use_regex", 0}}), key + "use_regex': found the number 0, expected true or false"},
      {one({{"type", "Split"}}), key + "pattern': found none, expected an object"},
      {changed(qwen, {{"pattern", {{"String", " "}}}}), "key 'pre_tokenizer': found Split" + steps},
      {changed(qwen, {{"pattern", {{"Regex", 5}}}}),
       key + "pattern.Regex': found the number 5, expected a string"},
      {changed(qwen, {{"pattern", {{"Regex", "a+"}}}}),
       key + "pattern.Regex': found the string 'a+', expected the pattern of Qwen 2 or of Llama 3"},
      {changed(qwen, {{"behavior", "Removed"}}),
       key + "behavior': found the string 'Removed', expected Isolated"},
      {changed(qwen, {{"behavior", nullptr}}), key + "behavior': found none, expected a string"},
      {changed(qwen, {{"invert", true}}), key + "invert': found true, expected false"},
      {changed(qwen, {{"invert", 1}}), key + "invert': found the number 1, expected true or false"},
  });
}

// Steps that are known, each with an option that belongs to another model.
TEST(TokenizerPipeline, MixturesAreRefused) {
  const Json qwen = pre({split(pattern("\\p{N}")), kPlain});
  const Json llama3 = pre({split(pattern("\\p{N}{1,3}")), kPlain});
  expect_refused({
      {byte_level({{"normalizer", kNfc}}),
       "key 'normalizer': found NFC, expected none, as the pre-tokenizer is that of gpt-2"},
      {byte_level({{"pre_tokenizer", qwen}}),
       "key 'normalizer': found none, expected NFC, as the pre-tokenizer is that of qwen2"},
      {byte_level({{"pre_tokenizer", llama3}}),
       "key 'model.ignore_merges': found false, expected true, as the pre-tokenizer is that of llama-bpe"},
      {byte_level({{"model", {{"ignore_merges", true}}}}),
       "key 'model.ignore_merges': found true, expected false, as the pre-tokenizer is that of gpt-2"},
  });
}

TEST(TokenizerPipeline, OtherPostProcessorsAreRefused) {
  const std::string key = "key 'post_processor.";
  expect_refused({
      {post({{"type", "BertProcessing"}}),
       key + "type': found the string 'BertProcessing', expected TemplateProcessing or ByteLevel"},
      {post({{"type", "TemplateProcessing"}}), key + "single': found none, expected an array"},
      {post(single({})), key + "single': found an array of 0, expected a Sequence among them"},
      {post(single({special("<s>")})), key + "single': found an array of 1, expected a Sequence among them"},
      {post(single({special("<s>"), special("<s>"), kText})),
       key + "single': found an array of 3, expected one token before the text, and one behind it, at most"},
      {post(single({kText, special("<s>"), special("</s>")})),
       key + "single': found an array of 3, expected one token before the text, and one behind it, at most"},
      {post(single({kText, kText})), key + "single[1].SpecialToken': found none, expected an object"},
      {post(single({"A"})), key + "single[0]': found the string 'A', expected an object"},
      {post(single({{{"SpecialToken", {{"id", 5}}}}})),
       key + "single[0].SpecialToken.id': found the number 5, expected a string"},
  });
}

Json strip(int start, int stop) {
  return {{"type", "Strip"}, {"content", " "}, {"start", start}, {"stop", stop}};
}
Json decoders(const std::vector<Json>& steps) { return {{"decoder", sequence("decoders", steps)}}; }
const Json kSpaces = {{"type", "Replace"}, {"pattern", {{"String", kBar}}}, {"content", " "}};
const Json kBytes = {{"type", "ByteFallback"}};
const Json kFuse = {{"type", "Fuse"}};

TEST(TokenizerPipeline, DecodersThatUndoTheSteps) {
  Json bare = decoders({kSpaces, kBytes, kFuse});
  bare["normalizer"] = kReplace;
  const auto spaced = [](const char* scheme) {
    return fallback({{"normalizer", nullptr},
                     {"pre_tokenizer", metaspace({{"prepend_scheme", scheme}})},
                     {"decoder", metaspace({{"prepend_scheme", scheme}})}});
  };
  for (const Json& file : {byte_level({{"decoder", nullptr}}), byte_level({{"decoder", kRegex}}),
                           fallback(decoders({kSpaces, kBytes, kFuse, strip(1, 0)})), fallback(bare),
                           spaced("first"), spaced("never")})
    EXPECT_TRUE(read(file).ok()) << read(file).status().message() << "\n" << file;
}

TEST(TokenizerPipeline, OtherDecodersAreRefused) {
  const std::string key = "key 'decoder.";
  Json never = fallback({{"normalizer", kReplace}});
  never["decoder"] = strip(1, 0);
  Json words = kSpaces;
  words["content"] = "_";
  Json other = kSpaces;
  other["pattern"]["String"] = "_";
  expect_refused({
      {byte_level({{"decoder", {{"type", "WordPiece"}}}}),
       key + "type': found the string 'WordPiece', expected ByteLevel, as the pre-tokenizer"},
      {fallback({{"decoder", {{"type", "ByteLevel"}}}}),
       key + "type': found the string 'ByteLevel', expected Replace, ByteFallback, Fuse, Strip or Metaspace, "
             "as "
             "the model falls back to bytes"},
      {fallback(decoders({kSpaces, kBytes, kFuse})),
       "key 'decoder': found none that strips a space, expected one, as a space is put before texts"},
      {never, "key 'decoder': found Strip of a space, expected none, as no space is put before texts"},
      {fallback(decoders({words})), key + "decoders[0].content': found the string '_', expected a space"},
      {fallback(decoders({other})),
       key + "decoders[0].pattern.String': found the string '_', expected U+2581"},
      {fallback(decoders({strip(2, 0)})), key + "decoders[0].start': found the number 2, expected 0 or 1"},
      {fallback(decoders({strip(1, 1)})), key + "decoders[0].stop': found the number 1, expected 0"},
  });
}

}  // namespace
}  // namespace kvfold::testing
