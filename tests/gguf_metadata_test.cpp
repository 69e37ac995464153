// What the loader takes of a GGUF model's metadata and tensors: values that are optional, every tensor that
// an architecture needs, and the whole line by which others are refused. (Files that are damaged:
// gguf_test.cpp.)
#include "loaders/gguf_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "loaders/gguf.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

class GgufModel : public ::testing::Test {
 protected:
  Result<ModelSource> load(const GgufWriter& writer) const {
    return load_gguf_model(folder_.write("m.gguf", writer.build()));
  }
  ModelSource good(const GgufWriter& writer) const {
    Result<ModelSource> source = load(writer);
    EXPECT_TRUE(source.ok()) << source.status().message();
    return source.ok() ? std::move(*source) : ModelSource();
  }
  void expect_refused(const GgufWriter& writer, const std::string& message) const {
    EXPECT_EQ(load(writer).status().message(), folder_.file("m.gguf") + ": " + message);
  }
  GgufFile file(const GgufWriter& writer) const {
    Result<GgufFile> opened = GgufFile::open(folder_.write("f.gguf", writer.build()));
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return std::move(*opened);
  }

  TemporaryFolder folder_;
};

GgufWriter of(const char* architecture, bool tied = true) {
  TinyModelOptions options;
  options.architecture = architecture;
  options.tied = tied;
  return tiny_model(options);
}

GgufWriter::Tensor vector(const std::string& name, uint64_t size) {
  return {name, {size}, 0, std::string(4 * size, '\0')};
}

// Llama with the biases that attention_bias gives it.
GgufWriter biased() {
  GgufWriter writer = of("llama");
  for (const char* layer : {"blk.0.", "blk.1."}) {
    for (const char* role : {"attn_q.bias", "attn_output.bias"})
      writer.tensors.push_back(vector(std::string(layer) + role, 64));
    for (const char* role : {"attn_k.bias", "attn_v.bias"})
      writer.tensors.push_back(vector(std::string(layer) + role, 32));
  }
  return writer;
}

TEST_F(GgufModel, EveryTensorIsNeeded) {
  for (const GgufWriter& whole : {of("llama"), of("llama", false), of("qwen2"), of("qwen3"), biased()}) {
    EXPECT_TRUE(load(whole).ok());
    for (const GgufWriter::Tensor& tensor : whole.tensors) {
      // What decides whether there are such tensors at all.
      if (tensor.name == "output.weight" || tensor.name.ends_with("attn_output.bias")) continue;
      if (whole.tensors.back().name.ends_with(".bias") && tensor.name.ends_with("attn_q.bias")) continue;
      GgufWriter without = whole;
      std::erase_if(without.tensors, [&](const auto& t) { return t.name == tensor.name; });
      expect_refused(without, "tensor '" + tensor.name + "' is missing");
    }
  }
}

TEST_F(GgufModel, ShapesThatAreRefused) {
  const auto refused = [&](GgufWriter writer, const char* name, const std::vector<uint64_t>& shape,
                           const std::string& message) {
    std::erase_if(writer.tensors, [&](const auto& t) { return t.name == name; });
    uint64_t size = 4;
    for (const uint64_t n : shape) size *= n;
    writer.tensors.push_back({name, shape, 0, std::string(size, '\0')});
    expect_refused(writer, std::string("tensor '") + name + "': found shape " + message);
  };
  refused(of("llama"), "output_norm.weight", {32}, "[32], expected [64]");
  refused(of("llama"), "output_norm.weight", {1, 64}, "[1, 64], expected [64]");
  refused(of("llama"), "output.weight", {64, 32}, "[64, 32], expected [64, 288]");
  refused(of("llama"), "blk.0.attn_q.weight", {64, 64, 1}, "[64, 64, 1], expected [64, 64]");
  refused(of("llama"), "blk.0.attn_q.weight", {4096}, "[4096], expected [64, 64]");
  refused(biased(), "blk.1.attn_output.bias", {32}, "[32], expected [64]");
  refused(of("llama"), "rope_freqs.weight", {4}, "[4], expected [8]");
  GgufWriter flat = of("llama");
  for (GgufWriter::Tensor& tensor : flat.tensors)
    if (tensor.name == "output_norm.weight") tensor.shape = {64, 1};  // one row
  EXPECT_TRUE(load(flat).ok());
}

// What is not read would change the result.
TEST_F(GgufModel, OtherTensorsAreRefused) {
  const auto refused = [&](const char* architecture, const std::string& name, const std::string& shown) {
    GgufWriter writer = of(architecture);
    writer.tensors.push_back(vector(name, 64));
    expect_refused(writer, "tensor '" + shown + "': found one, expected none of that name in a " +
                               architecture + " model of 2 layers");
  };
  for (const char* name : {"blk.0.ffn_gate.bias", "blk.1.ffn_down.bias", "output.bias",
                           "blk.2.attn_norm.weight", "blk.1.attn_q_norm.weight", "rope_factors_long.weight"})
    refused("llama", name, name);
  refused("qwen2", "blk.0.attn_k_norm.weight", "blk.0.attn_k_norm.weight");
  refused("qwen3", "\x1B[2J", "?[2J");
}

// Up to its window a model attends to all rows; beyond it to others than are computed.
TEST_F(GgufModel, AWindowIsNotExceeded) {
  const auto windowed = [](uint32_t rows) { return of("llama").u32("llama.attention.sliding_window", rows); };
  EXPECT_EQ(good(windowed(0)).config.attention_window, 0);
  EXPECT_EQ(good(windowed(4)).config.attention_window, 4);
  expect_refused(of("llama").value("llama.attention.sliding_window", GgufType::kInt32, -1),
                 "key 'llama.attention.sliding_window': found -1, expected 0 to 1073741824");
  const auto session = open_session(folder_.write("m.gguf", windowed(4).build()), {});
  ASSERT_TRUE(session.ok()) << session.status().message();
  KvCache cache = (*session)->make_cache();
  const std::vector<TokenId> four = {1, 2, 3, 4};
  const std::vector<TokenId> one = {5};
  ASSERT_TRUE((*session)->feed(cache, four).ok());
  EXPECT_EQ((*session)->feed(cache, one).status().message(),
            "feed: found 5 rows, expected at most the model's attention window, 4");
  EXPECT_EQ(cache.size(), 4);
}

TEST_F(GgufModel, OptionalKeys) {
  GgufWriter writer = of("llama");
  EXPECT_EQ(good(writer).config.name, "tiny");
  EXPECT_EQ(good(writer.remove("general.name")).config.name, "");
  writer.remove("llama.rope.freq_base").u32("llama.rope.dimension_count", 8);
  writer.u32("llama.attention.key_length", 16).u32("llama.attention.value_length", 16);
  const ModelConfig config = good(writer).config;
  EXPECT_EQ(config.rope_base, 10000);
  EXPECT_EQ(config.rotary_dim, 8);
  EXPECT_EQ(config.head_dim, 16);
}

TEST_F(GgufModel, ScalingThatDoesNothingIsTaken) {
  const auto scaled = [](const char* type, float factor) {
    return of("llama").string("llama.rope.scaling.type", type).f32("llama.rope.scaling.factor", factor);
  };
  EXPECT_TRUE(load(scaled("none", 1)).ok());
  EXPECT_TRUE(load(scaled("none", 4)).ok());
  EXPECT_TRUE(load(scaled("linear", 1)).ok());
  EXPECT_TRUE(load(of("llama").string("llama.rope.scaling.type", "linear")).ok());
  const std::string expected = ", expected none (Llama 3's scaling comes as the tensor rope_freqs.weight)";
  const std::string key = "key 'llama.rope.scaling.";
  expect_refused(scaled("linear", 4), key + "type': found 'linear' with factor 4" + expected);
  expect_refused(scaled("yarn", 1), key + "type': found 'yarn' with factor 1" + expected);
  expect_refused(scaled("linear", 0), key + "factor': found 0, expected a finite number above 0");
  // A factor alone scales linearly, by its old key too; of both the new one counts.
  const auto factor = [](const char* name, float value) { return of("llama").f32(name, value); };
  const char* const old = "llama.rope.scale_linear";
  EXPECT_TRUE(load(factor("llama.rope.scaling.factor", 1)).ok());
  EXPECT_TRUE(load(factor(old, 4).f32("llama.rope.scaling.factor", 1)).ok());
  expect_refused(factor("llama.rope.scaling.factor", 4),
                 key + "factor': found 'linear' with factor 4" + expected);
  expect_refused(factor(old, 4), "key 'llama.rope.scale_linear': found 'linear' with factor 4" + expected);
  expect_refused(of("llama").u32("llama.rope.scaling.type", 1), key + "type': found uint32, expected string");
}

TEST_F(GgufModel, DivisorsOfRope) {
  GgufWriter writer = of("llama");
  Bytes data;
  for (int i = 0; i < 8; ++i) data.put(1.0F + static_cast<float>(i));
  writer.tensors.push_back({"rope_freqs.weight", {8}, 0, data.str()});
  EXPECT_EQ(good(writer).config.rope_factors, (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST_F(GgufModel, KeysThatAreRefused) {
  const auto refused = [&](const char* key, uint32_t value, const std::string& message) {
    expect_refused(of("llama").u32(key, value), std::string("key '") + key + "': found " + message);
  };
  const auto no_number = [&](const char* key, const std::string& expected) {
    expect_refused(of("llama").boolean(key, true),
                   std::string("key '") + key + "': found bool, expected " + expected);
  };
  for (const char* key : {"llama.attention.head_count_kv", "llama.attention.key_length",
                          "llama.attention.value_length", "llama.rope.dimension_count"})
    no_number(key, "an integer");
  no_number("llama.rope.freq_base", "float32 or float64");
  no_number("general.name", "string");
  no_number("tokenizer.ggml.pre", "string");
  no_number("tokenizer.ggml.merges", "array of string");
  no_number("tokenizer.ggml.token_type", "array of integers");
  no_number("tokenizer.ggml.scores", "array of float32");
  no_number("tokenizer.chat_template", "string");
  refused("llama.attention.head_count_kv", 65537, "65537, expected 1 to 65536");
  refused("llama.attention.value_length", 0, "0, expected 1 to 65536");
  expect_refused(
      of("llama").u32("llama.attention.key_length", 65536).u32("llama.attention.head_count", 65536),
      "key 'llama.attention.head_count': found 65536 heads of 65536, expected a product up to 16777216");
}

const char* const kIds[] = {"bos_token_id",     "eos_token_id", "unknown_token_id",
                            "padding_token_id", "eot_token_id", "eom_token_id"};

TEST_F(GgufModel, SpecialTokens) {
  GgufWriter writer = of("llama");
  for (uint32_t i = 0; i < 6; ++i) writer.u32(std::string("tokenizer.ggml.") + kIds[i], i);
  writer.boolean("tokenizer.ggml.add_bos_token", true).boolean("tokenizer.ggml.add_eos_token", true);
  const VocabularySource v = good(writer).vocabulary;
  EXPECT_EQ((std::vector<TokenId>{v.bos, v.eos, v.unknown, v.padding}), (std::vector<TokenId>{0, 1, 2, 3}));
  EXPECT_EQ(v.end_tokens, (std::vector<TokenId>{4, 5}));
  EXPECT_TRUE(v.add_bos && v.add_eos);
  for (const char* id : kIds) {
    const std::string key = std::string("tokenizer.ggml.") + id;
    expect_refused(of("llama").value(key, GgufType::kInt32, -1),
                   "key '" + key + "': found -1, expected a token id, 0 to 287");
    expect_refused(of("llama").u32(key, 288), "key '" + key + "': found 288, expected a token id, 0 to 287");
    expect_refused(of("llama").f32(key, 1), "key '" + key + "': found float32, expected an integer");
  }
  for (const char* flag : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"})
    expect_refused(of("llama").u32(flag, 1), std::string("key '") + flag + "': found uint32, expected bool");
}

// Files of Llama 3 do not say that their texts begin with a token.
TEST_F(GgufModel, TextsOfLlama3BeginWithBos) {
  const auto writer = [](const char* pre) {
    return of("llama").string("tokenizer.ggml.pre", pre).u32("tokenizer.ggml.bos_token_id", 3);
  };
  EXPECT_TRUE(good(writer("llama-bpe")).vocabulary.add_bos);
  EXPECT_FALSE(good(writer("smollm")).vocabulary.add_bos);
  EXPECT_FALSE(good(writer("llama-bpe").boolean("tokenizer.ggml.add_bos_token", false)).vocabulary.add_bos);
  EXPECT_FALSE(good(writer("llama-bpe").remove("tokenizer.ggml.bos_token_id")).vocabulary.add_bos);
}

// SPM vocabularies have what Llama's own has, where the file does not say.
TEST_F(GgufModel, DefaultsOfSpm) {
  const auto spm = [](const std::vector<std::string>& tokens) {
    GgufWriter writer = of("llama").string("tokenizer.ggml.model", "llama");
    if (!tokens.empty()) {
      writer.strings("tokenizer.ggml.tokens", tokens).remove("tokenizer.ggml.token_type");
      for (GgufWriter::Tensor& t : writer.tensors)
        if (t.name == "token_embd.weight")
          t = {t.name, {64, tokens.size()}, 0, std::string(256 * tokens.size(), '\0')};
    }
    return writer.remove("tokenizer.ggml.eos_token_id");
  };
  const auto ids = [&](const std::vector<std::string>& tokens) {
    const VocabularySource v = good(spm(tokens)).vocabulary;
    EXPECT_EQ(v.add_bos, v.bos >= 0);
    return std::vector<TokenId>{v.unknown, v.bos, v.eos};
  };
  EXPECT_EQ(ids({}), (std::vector<TokenId>{0, 1, 2}));
  EXPECT_EQ(ids({"a"}), (std::vector<TokenId>{0, -1, -1}));
  EXPECT_EQ(ids({"a", "b"}), (std::vector<TokenId>{0, 1, -1}));
  EXPECT_EQ(ids({"a", "b", "c"}), (std::vector<TokenId>{0, 1, 2}));
  const auto prefix = [&](bool set) {
    return good(spm({}).boolean("tokenizer.ggml.add_space_prefix", set)).vocabulary.space_prefix;
  };
  EXPECT_EQ(good(spm({})).vocabulary.space_prefix, SpacePrefix::kSegment);
  EXPECT_EQ(prefix(true), SpacePrefix::kSegment);
  EXPECT_EQ(prefix(false), SpacePrefix::kNone);
  expect_refused(spm({}).u32("tokenizer.ggml.add_space_prefix", 0),
                 "key 'tokenizer.ggml.add_space_prefix': found uint32, expected bool");
}

TEST_F(GgufModel, AttributesOfTokens) {
  std::vector<int32_t> types(288, 1);
  types[3] = 0;  // undefined, as some files have it
  types[4] = 6;
  const ModelSource source = good(of("llama").ints("tokenizer.ggml.token_type", types));
  EXPECT_EQ(source.vocabulary.types[3], TokenType::kNormal);
  EXPECT_EQ(source.vocabulary.types[4], TokenType::kByte);
  for (const int32_t type : {-1, 7}) {
    types[5] = type;
    expect_refused(
        of("llama").ints("tokenizer.ggml.token_type", types),
        "key 'tokenizer.ggml.token_type': found " + std::to_string(type) + " for token 5, expected 0 to 6");
  }
  const auto scores = [](uint64_t count) {
    Bytes bytes;
    bytes.put(static_cast<uint32_t>(GgufType::kArray))
        .put(static_cast<uint32_t>(GgufType::kFloat32))
        .put(count);
    for (uint64_t i = 0; i < count; ++i) bytes.put(static_cast<float>(i));
    return of("llama").entry("tokenizer.ggml.scores", bytes.str());
  };
  EXPECT_EQ(good(scores(288)).vocabulary.scores[5], 5);
  for (const uint64_t count : {0, 287})
    expect_refused(scores(count), "key 'tokenizer.ggml.scores': found " + std::to_string(count) +
                                      " values, expected one for each of the 288 tokens");
}

// Every integer type, in values and in lists.
TEST_F(GgufModel, Integers) {
  const auto list = [](GgufType type, const std::string& bytes) {
    return Bytes()
        .put(static_cast<uint32_t>(GgufType::kArray))
        .put(static_cast<uint32_t>(type))
        .put(uint64_t{1})
        .raw(bytes)
        .str();
  };
  GgufWriter writer;
  const auto add = [&](const char* name, GgufType type, auto value) {
    writer.value(name, type, value).entry(std::string(name) + "[]", list(type, Bytes().put(value).str()));
  };
  add("u8", GgufType::kUint8, uint8_t{200});
  add("i8", GgufType::kInt8, int8_t{-100});
  add("u16", GgufType::kUint16, uint16_t{60000});
  add("i16", GgufType::kInt16, int16_t{-30000});
  add("u32", GgufType::kUint32, uint32_t{4'000'000'000});
  add("i32", GgufType::kInt32, int32_t{-2'000'000'000});
  add("u64", GgufType::kUint64, uint64_t{1} << 63);
  add("i64", GgufType::kInt64, int64_t{-1} << 40);
  add("bool", GgufType::kBool, uint8_t{1});
  add("f64", GgufType::kFloat64, 1.0);
  const GgufFile f = file(writer);
  const auto whole = [&](const char* key) { return *f.integer(key); };
  EXPECT_EQ((std::vector{whole("u8"), whole("i8"), whole("u16"), whole("i16")}),
            (std::vector<int64_t>{200, -100, 60000, -30000}));
  EXPECT_EQ((std::vector{whole("u32"), whole("i32"), whole("i64")}),
            (std::vector<int64_t>{4'000'000'000, -2'000'000'000, -(int64_t{1} << 40)}));
  const auto first = [&](const char* key) { return f.integers(key)->at(0); };
  EXPECT_EQ((std::vector{first("u8[]"), first("i8[]"), first("u16[]"), first("i16[]"), first("i32[]")}),
            (std::vector<int32_t>{200, -100, 60000, -30000, -2'000'000'000}));
  const std::string path = folder_.file("f.gguf");
  EXPECT_EQ(f.integer("u64").status().message(),
            path + ": key 'u64': found 9223372036854775808, expected at most 2^63 - 1");
  for (const std::string key : {"u32[]", "u64[]", "i64[]"})
    EXPECT_EQ(f.integers(key).status().message(),
              path + ": key '" + key + "': element 0 does not fit in 32 bits");
  for (const auto& [key, type] : {std::pair("bool[]", "bool"), {"f64[]", "float64"}})
    EXPECT_EQ(f.integers(key).status().message(),
              path + ": key '" + key + "': found array of " + type + ", expected array of integers");
  EXPECT_EQ(*f.number("f64"), 1);
  EXPECT_FALSE(f.integer("bool").ok() || f.boolean("u8").ok() || f.number("u8").ok());
}

TEST_F(GgufModel, KeysThatAreNotThere) {
  const GgufFile f = file(GgufWriter().entry("none", Bytes()
                                                         .put(static_cast<uint32_t>(GgufType::kArray))
                                                         .put(static_cast<uint32_t>(GgufType::kFloat32))
                                                         .put(uint64_t{0})
                                                         .str()));
  const std::string message = folder_.file("f.gguf") + ": key 'absent' is missing";
  EXPECT_EQ(f.integer("absent").status().message(), message);
  EXPECT_EQ(f.number("absent").status().message(), message);
  EXPECT_EQ(f.boolean("absent").status().message(), message);
  EXPECT_EQ(f.string("absent").status().message(), message);
  EXPECT_EQ(f.strings("absent").status().message(), message);
  EXPECT_EQ(f.integers("absent").status().message(), message);
  EXPECT_EQ(f.floats("absent").status().message(), message);
  EXPECT_TRUE(f.floats("none")->empty());
  EXPECT_EQ(f.tensor("absent"), nullptr);
  EXPECT_EQ(f.name_of(nullptr), "");
  EXPECT_STREQ(gguf_type_name(GgufType::kArray), "array");
  EXPECT_STREQ(gguf_type_name(static_cast<GgufType>(13)), "unknown");
  EXPECT_FALSE(GgufFile::open(folder_.file("absent")).ok());
  EXPECT_FALSE(load_gguf_model(folder_.file("absent")).ok());
}

TEST_F(GgufModel, NamesOfTensors) {
  const ModelSource source = good(of("llama", false));
  EXPECT_EQ(source.name_of(source.output), "output.weight");
  EXPECT_EQ(source.name_of(source.layers[1].down), "blk.1.ffn_down.weight");
  EXPECT_EQ(source.name_of({WeightType::kF32, 1, 1, nullptr}), "");
}

}  // namespace
}  // namespace kvfold::testing
