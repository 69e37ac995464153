// Attacks on readers of model files that are publicly known, by their names, as far as a table of broken
// files (gguf_test.cpp, safetensors_test.cpp) does not hold them already. Each is refused with one line, or
// does no harm.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>

#include "engine/kv/cache_metadata.h"
#include "engine/kv/ops.h"
#include "engine/random.h"
#include "engine/strict_json.h"
#include "engine/tokenizer/token_map.h"
#include "kernels/formats/formats.h"
#include "loaders/convert.h"
#include "loaders/gguf_model.h"
#include "loaders/model_loader.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

constexpr auto kMost63 = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

// The one line that a model is refused with.
std::string refusal(const GgufWriter& writer) {
  const TemporaryFolder folder;
  const Result<std::unique_ptr<Session>> session = open_session(folder.write("bad.gguf", writer.build()), {});
  EXPECT_FALSE(session.ok());
  for (const char c : session.status().message())
    EXPECT_TRUE(c >= ' ' && c < 127) << session.status().message();
  return session.status().message();
}

void expect_named(const std::string& message, const std::string& words) {
  EXPECT_NE(message.find(words), std::string::npos) << message;
}

GgufWriter::Tensor& tensor(GgufWriter& writer, const std::string& name) {
  return *std::find_if(writer.tensors.begin(), writer.tensors.end(),
                       [&](const auto& t) { return t.name == name; });
}

// Sizes that are each below 2^63 and together above 2^64: their sum would wrap to what the file holds.
TEST(KnownAttacks, CVE_2025_53630_SumOfTensorSizesWraps) {
  GgufWriter writer = tiny_model();
  for (int i = 0; i < 4; ++i) {
    writer.tensors[i].type = 0;
    writer.tensors[i].shape = {1, uint64_t{1} << 60};
  }
  expect_named(refusal(writer), "size of tensor 'token_embd.weight'");
}

// The bypass: sizes so close to 2^64 that padding one to the alignment wraps to nothing.
TEST(KnownAttacks, CVE_2026_27940_PaddedSizeWraps) {
  GgufWriter writer = tiny_model();
  writer.tensors[0].type = 0;
  writer.tensors[0].shape = {kMost63 / 4, 1, 1, 1};
  expect_named(refusal(writer), "size of tensor 'token_embd.weight'");
  writer.tensors[0].offset = static_cast<int64_t>(kMost63 - 31);
  writer.tensors[0].shape = {32, 1};
  expect_named(refusal(writer), "data of tensor 'token_embd.weight'");
}

// Elements fit into 63 bits and bytes do not.
TEST(KnownAttacks, CVE_2026_33298_BytesOfATensorWrap) {
  for (const uint64_t rows : {kMost63 / 64, kMost63 / 32, kMost63 / 16}) {
    GgufWriter writer = tiny_model();
    writer.tensors[0].type = 0;
    writer.tensors[0].shape = {16, rows};
    expect_named(refusal(writer), "size of tensor 'token_embd.weight'");
  }
}

// An alignment of 64 bits, whose padding would wrap.
TEST(KnownAttacks, AlignmentBeyond32Bits) {
  for (const uint64_t alignment : {uint64_t{1} << 63, uint64_t{1} << 33, ~uint64_t{0}}) {
    GgufWriter writer = tiny_model();
    writer.value("general.alignment", GgufType::kUint64, alignment);
    expect_named(refusal(writer), "general.alignment");
  }
}

// No length makes the reader count up to it.
TEST(KnownAttacks, ArrayLength2To63OfEveryTypeDoesNotHang) {
  for (uint32_t type = 0; type <= 12; ++type)
    for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, (~uint64_t{0}) / 8 + 1}) {
      GgufWriter writer = tiny_model();
      writer.entry("x", Bytes().put(9U).put(type).put(length).str());
      expect_named(refusal(writer), "'x'");
    }
}

// Keys and tensors are found by hash: twice as many take twice as long. With a scan of all keys for each,
// these 200,000 would take minutes and the test's time limit.
TEST(KnownAttacks, ManyKeysAreNoQuadraticScan) {
  const TemporaryFolder folder;
  GgufWriter writer = tiny_model();
  const std::string value = Bytes().put(0U).put(uint8_t{1}).str();
  for (int i = 0; i < 200'000; ++i) writer.add_entry("k" + std::to_string(i), value);
  EXPECT_TRUE(load_gguf_model(folder.write("many.gguf", writer.build())).ok());
}

// 2^pairs keys of one hash, for whoever knows the hash: what libstdc++ hashes texts by is undone by hand. A
// key is pairs of blocks, of each of which there are two: the second half takes back what the first half
// changed. Blocks are such that the keys can stand in JSON.
std::vector<std::string> keys_of_one_hash(int pairs) {
  constexpr uint64_t kFactor = 0xC6A4A7935BD1E995;
  uint64_t inverse = 1;  // of kFactor, modulo 2^64
  for (int i = 0; i < 6; ++i) inverse *= 2 - kFactor * inverse;
  const auto shifted = [](uint64_t x) { return x ^ x >> 47; };
  const auto mixed = [&](uint64_t x) { return shifted(x * kFactor) * kFactor; };
  const auto unmixed = [&](uint64_t x) { return shifted(x * inverse) * inverse; };
  const auto text_of = [](uint64_t x) { return Bytes().put(x).str(); };
  const auto is_text = [&](uint64_t x) {
    return std::ranges::all_of(text_of(x), [](char c) { return c >= ' ' && c != '"' && c != '\\'; });
  };
  Random random(1);
  const auto letters = [&] {
    uint64_t x = 0;
    for (int i = 0; i < 8; ++i) x = x << 8 | ('a' + random.below(26));
    return x;
  };
  uint64_t state = 0xC70F6907 ^ 16 * static_cast<uint64_t>(pairs) * kFactor;
  std::vector<std::string> keys = {""};
  for (int i = 0; i < pairs; ++i) {
    const uint64_t first = letters();
    const uint64_t other = letters();
    const uint64_t after = (state ^ mixed(first)) * kFactor;
    const uint64_t change = after ^ (state ^ mixed(other)) * kFactor;
    uint64_t second = letters();
    while (!is_text(unmixed(mixed(second) ^ change))) second = letters();
    state = (after ^ mixed(second)) * kFactor;
    std::vector<std::string> longer;
    for (const std::string& key : keys) {
      longer.push_back(key + text_of(first) + text_of(second));
      longer.push_back(key + text_of(other) + text_of(unmixed(mixed(second) ^ change)));
    }
    keys = std::move(longer);
  }
  EXPECT_EQ(std::hash<std::string>()(keys.front()), std::hash<std::string>()(keys.back()));
  return keys;
}

// As above: hundreds of seconds where the table's hash can be foreseen.
TEST(KnownAttacks, KeysOfOneHashAreNoQuadraticScan) {
  const TemporaryFolder folder;
  const std::vector<std::string> keys = keys_of_one_hash(17);
  GgufWriter writer = tiny_model();
  const std::string value = Bytes().put(0U).put(uint8_t{1}).str();
  std::string json = "{\"a\":1";
  for (const std::string& key : keys) {
    writer.add_entry(key, value);
    json += ",\"" + key + "\":1";
  }
  EXPECT_TRUE(load_gguf_model(folder.write("keys.gguf", writer.build())).ok());
  EXPECT_TRUE(parse_json(json + "}").ok());
}

// Tokens of one XXH3, which multiplies pairs of 8 bytes after it has added a secret to them: where the sum of
// the first is nothing, the second may be anything.
TEST(KnownAttacks, TokensOfOneHashAreNoQuadraticScan) {
  const std::string secret = "\xB8\xFE\x6C\x39\x23\xA4\x4B\xBE";
  std::vector<std::string> tokens;
  for (uint64_t i = 0; i < 200'000; ++i)
    tokens.push_back(Bytes().raw(secret).put(i).raw("0123456789abcdef").str());
  EXPECT_EQ(XXH3_64bits(tokens[0].data(), 32), XXH3_64bits(tokens[1].data(), 32));
  const std::vector<std::string_view> views(tokens.begin(), tokens.end());
  EXPECT_EQ(TokenMap(views).find(tokens[1234]), 1234);
}

// Types and scores are read as what the file says they are, or not at all.
TEST(KnownAttacks, ScoresAndTypesOfEveryWrongElementType) {
  constexpr size_t kWidths[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};  // of one element; a string's length
  for (uint32_t type = 0; type <= 12; ++type) {
    const std::string array =
        Bytes().put(9U).put(type).put(uint64_t{1}).raw(std::string(kWidths[type], '\0')).str();
    GgufWriter scores = tiny_model();
    GgufWriter types = tiny_model();
    scores.entry("tokenizer.ggml.scores", array);
    types.entry("tokenizer.ggml.token_type", array);
    expect_named(refusal(scores), "tokenizer.ggml.scores");
    expect_named(refusal(types), "tokenizer.ggml.token_type");
  }
}

// A byte token names a byte with two hex digits and nothing else.
TEST(KnownAttacks, ByteTokensThatNameNoByte) {
  for (const char* name :
       {"<0x-1>", "<0x+1>", "<0x1>", "<0x100>", "<0xZZ>", "<0x 1>", "0x41", "<0x41", "", "<0x4\xFF>"}) {
    VocabularySource source;
    source.model = "llama";
    source.tokens = {"<unk>", name};
    source.types = {TokenType::kUnknown, TokenType::kByte};
    source.scores = {0, 0};
    const auto tokenizer = Tokenizer::create(source, nullptr);
    ASSERT_FALSE(tokenizer.ok()) << name;
    expect_named(tokenizer.status().message(), "byte token 1");
  }
}

// A token's text may be of any length, in the file and on its way back into a text.
TEST(KnownAttacks, CVE_2025_49847_TokenOfAMegabyte) {
  const std::string huge(1 << 20, 'x');
  for (const char* model : {"gpt2", "llama"}) {
    VocabularySource source;
    source.model = model;
    source.pre_tokenizer = "smollm";
    source.tokens = {"<unk>", "x", huge, "xx"};
    source.types = {TokenType::kUnknown, TokenType::kNormal, TokenType::kControl, TokenType::kNormal};
    source.scores = {0, -1, -2, -3};
    const auto tokenizer = Tokenizer::create(source, nullptr);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    EXPECT_EQ((*tokenizer)->encode(huge), (std::vector<TokenId>{2}));
    EXPECT_EQ((*tokenizer)->token_bytes(2), huge);
  }
}

// Lengths in a tokenizer are never compared as signed 32 bits: a text above what fits a model comes back
// whole (CVE-2025-52566 is such a comparison).
TEST(KnownAttacks, CVE_2025_52566_LongPromptsTokenize) {
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  const Tokenizer& tokenizer = session->tokenizer();
  std::string megabyte;
  while (megabyte.size() < (1 << 20)) megabyte += "the <|im_start|>\xFF\xC3 and \xE2\x96\x81\n 42 ";
  const std::vector<TokenId> ids = tokenizer.encode(megabyte);
  EXPECT_EQ(tokenizer.decode(ids), megabyte);
  EXPECT_TRUE(tokenizer.encode("").empty());
  const std::string special = "<|im_start|><|im_end|><|endoftext|><|im_start|>";
  EXPECT_EQ(tokenizer.encode(special).size(), 4U);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(special)), special);
}

TEST(KnownAttacks, TokenIdsOutsideTheVocabulary) {
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  KvCache cache = session->make_cache();
  const int size = session->model().config().vocab_size;
  for (const TokenId id : {-1, size, INT32_MAX, INT32_MIN}) {
    const std::vector<TokenId> ids = {1, id};
    const auto logits = session->feed(cache, ids);
    ASSERT_FALSE(logits.ok());
    expect_named(logits.status().message(), "outside the vocabulary");
    EXPECT_EQ(cache.size(), 0);
  }
}

// Ranges that run backwards, begin below zero or end behind the rows, in every operation that takes some.
TEST(KnownAttacks, CVE_2026_21869_ReversedRangesInCacheCalls) {
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  KvCache cache = session->make_cache();
  const std::vector<TokenId> ids = {1, 2, 3, 4, 5};
  ASSERT_TRUE(session->feed(cache, ids).ok());
  for (const char* text : {"rows=3-1", "rows=-1", "rows=-3--1", "rows=5", "rows=0-5", "rows=4294967296",
                           "rows=1-18446744073709551615", "layers=1-0", "layers=2", "heads=-1", "heads=9"})
    EXPECT_FALSE(Selection::parse(text, cache.shape(), cache.size()).ok()) << text;
  for (const int size : {-1, INT32_MIN, 6, INT32_MAX}) EXPECT_FALSE(truncate(cache, size).ok()) << size;
  const Result<KvSlice> slice = extract(cache, Selection::all(cache.shape(), cache.size()));
  ASSERT_TRUE(slice.ok());
  for (const int at : {-1, INT32_MIN, 6, INT32_MAX}) EXPECT_FALSE(insert(cache, *slice, at, {}).ok()) << at;
  for (const int32_t delta : {INT32_MAX, INT32_MIN, kMostPosition, -kMostPosition - 1})
    EXPECT_FALSE(shift(cache, std::vector<int>{0, 1, 2, 3, 4}, delta).ok()) << delta;
  for (const std::vector<int>& rows : {std::vector<int>{4, 3, 2, 1, 0, 0}, {-1, 0, 1, 2, 3}, {0, 1, 2, 3, 5}})
    EXPECT_FALSE(overwrite(cache, *slice, rows).ok());
  EXPECT_FALSE(InsertPositions::parse("gap:-1").ok());
  EXPECT_FALSE(InsertPositions::parse("gap:99999999999").ok());
  EXPECT_EQ(cache.size(), 5);
}

// Shapes in a cache file's header whose product wraps, or asks for memory that no file of its size is worth:
// a lane without rows takes no byte in the file.
TEST(KnownAttacks, CacheShapesThatNoFileHolds) {
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  KvCache cache = session->make_cache();
  const std::string path = folder.file("c.safetensors");
  ASSERT_TRUE(save_cache(cache, cache_model_info(session->model().source()), path).ok());
  const std::string whole = TemporaryFolder::read(path);
  const auto length = [](const std::string& file) {
    uint64_t value = 0;
    std::memcpy(&value, file.data(), sizeof value);
    return value;
  };
  const auto header = nlohmann::json::parse(whole.substr(8, length(whole)));
  struct Shape {
    const char *layers, *heads, *dim;
  };
  for (const Shape& shape : {Shape{"1048576", "1048576", "16"},
                             {"65536", "65536", "16"},
                             {"2", "1048576", "16"},
                             {"2", "2", "1048576"},
                             {"1", "262145", "16"}}) {
    auto changed = header;
    auto& metadata = changed["__metadata__"];
    metadata["layers"] = shape.layers;
    metadata["kv_heads"] = shape.heads;
    metadata["head_dim"] = shape.dim;
    metadata["checksum"] = metadata_checksum(metadata.get<std::map<std::string, std::string>>());
    const std::string text = changed.dump();
    const auto size = static_cast<uint64_t>(text.size());
    std::string file(reinterpret_cast<const char*>(&size), sizeof size);
    const Result<CacheFileInfo> info =
        read_cache_info(folder.write("bad", file + text + whole.substr(8 + length(whole))));
    ASSERT_FALSE(info.ok()) << shape.layers;
    expect_named(info.status().message(), "metadata '");
  }
}

// One weight among thousands, in every format and in each of its scales.
TEST(KnownAttacks, InfinityAndNanInWeightsAreNamedByTensor) {
  const TemporaryFolder folder;
  const std::string f16_nan = Bytes().put(uint16_t{0x7E00}).str();
  const std::string f16_infinity = Bytes().put(uint16_t{0xFC00}).str();
  struct Case {
    WeightType type;
    size_t at;  // in the last block
    int dim;
  };
  const Case cases[] = {{WeightType::kF16, 0, 16},   {WeightType::kQ4_0, 0, 16}, {WeightType::kQ4_1, 0, 16},
                        {WeightType::kQ4_1, 2, 16},  {WeightType::kQ5_0, 0, 16}, {WeightType::kQ5_1, 0, 16},
                        {WeightType::kQ5_1, 2, 16},  {WeightType::kQ8_0, 0, 16}, {WeightType::kQ4_K, 0, 64},
                        {WeightType::kQ4_K, 2, 64},  {WeightType::kQ5_K, 0, 64}, {WeightType::kQ5_K, 2, 64},
                        {WeightType::kQ6_K, 208, 64}};
  for (const Case& c : cases)
    for (const std::string& bad : {f16_nan, f16_infinity}) {
      TinyModelOptions options;
      options.type = c.type;
      options.head_dim = c.dim;
      options.ffn_dim = 256;
      GgufWriter writer = tiny_model(options);
      GgufWriter::Tensor& broken = tensor(writer, "blk.1.attn_v.weight");
      const size_t block = broken.data.size() / (broken.shape[0] * broken.shape[1]);
      const FormatInfo& format = format_info(c.type);
      ASSERT_EQ(block, static_cast<size_t>(format.block_bytes / format.block_elements));
      broken.data.replace(broken.data.size() - static_cast<size_t>(format.block_bytes) + c.at, 2, bad);
      const std::string message = refusal(writer);
      expect_named(message, "tensor 'blk.1.attn_v.weight'");
      expect_named(message,
                   "row " + std::to_string(2 * c.dim - 1) + ", expected finite weights");  // the last
    }
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    GgufWriter writer = tiny_model();
    tensor(writer, "blk.0.ffn_norm.weight").data.replace(8, 4, Bytes().put(bad).str());
    expect_named(refusal(writer), "tensor 'blk.0.ffn_norm.weight'");
    TinyModelOptions untied;
    untied.tied = false;
    writer = tiny_model(untied);
    writer.tensors[0].type = 0;
    writer.tensors[0].data = std::string(writer.tensors[0].shape[0] * writer.tensors[0].shape[1] * 4, '\0');
    writer.tensors[0].data.replace(0, 4, Bytes().put(bad).str());
    expect_named(refusal(writer), "tensor 'token_embd.weight'");
    // Brought to another type on the way in, it would no longer show.
    OpenOptions quantized;
    quantized.quantization = *Quantization::parse("q8_0");
    const auto session = open_session(folder.write("bad.gguf", writer.build()), quantized);
    ASSERT_FALSE(session.ok());
    expect_named(session.status().message(), "tensor 'token_embd.weight'");
    ThreadPool pool(1);
    const auto source = load_model_source(folder.file("bad.gguf"));
    ASSERT_TRUE(source.ok());
    const Status converted =
        convert_to_gguf(*source, quantized.quantization, pool, folder.file("converted.gguf"));
    expect_named(converted.message(), "tensor 'token_embd.weight'");
    EXPECT_FALSE(std::filesystem::exists(folder.file("converted.gguf")));
  }
}

// Finite weights whose scale no f16 holds: no file and no model comes of them.
TEST(KnownAttacks, WeightsBeyondTheTypeTheyAreBroughtTo) {
  const TemporaryFolder folder;
  TinyModelOptions options;
  options.type = WeightType::kF32;
  GgufWriter writer = tiny_model(options);
  GgufWriter::Tensor& broken = tensor(writer, "blk.1.ffn_up.weight");
  broken.data.replace(broken.shape[0] * 4, 4, Bytes().put(1e30F).str());  // in row 1
  const std::string path = folder.write("large.gguf", writer.build());
  for (const char* type : {"q4_0", "q4_1", "q8_0", "q4_k"}) {
    OpenOptions quantized;
    quantized.quantization = *Quantization::parse(type);
    const auto session = open_session(path, quantized);
    ASSERT_FALSE(session.ok());
    expect_named(session.status().message(), path + ": tensor 'blk.1.ffn_up.weight': found weights beyond q");
    expect_named(session.status().message(), "in row 1, expected none");
    ThreadPool pool(1);
    const Status converted =
        convert_to_gguf(*load_model_source(path), quantized.quantization, pool, folder.file("out.gguf"));
    EXPECT_EQ(converted.message(), session.status().message());
    EXPECT_FALSE(std::filesystem::exists(folder.file("out.gguf")));
  }
}

// What a file calls itself must not reach a terminal as it is.
TEST(KnownAttacks, ControlCharactersInNamesAreNotPrinted) {
  const std::string evil = "\x1B]0;owned\a\x1B[2J\r\n\xC2\x9B";
  GgufWriter writer = tiny_model();
  writer.string("general.architecture", evil);
  expect_named(refusal(writer), "general.architecture");
  writer = tiny_model();
  writer.string("tokenizer.ggml.pre", evil);
  expect_named(refusal(writer), "tokenizer.ggml.pre");
  writer = tiny_model();
  writer.string("llama.rope.scaling.type", evil);
  expect_named(refusal(writer), "rope.scaling.type");
  writer = tiny_model();
  writer.string("tokenizer.ggml.model", evil);
  expect_named(refusal(writer), "tokenizer.ggml.model");
  writer = tiny_model();
  writer.tensors[0].name = evil;
  expect_named(refusal(writer), "token_embd.weight");
}

}  // namespace
}  // namespace kvfold::testing
