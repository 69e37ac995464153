// The GGUF loader against files that are good, and files that are not: every bad one is refused with one line
// that names the file and what is wrong in it.
#include "loaders/gguf.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "engine/random.h"
#include "loaders/gguf_model.h"
#include "loaders/model_loader.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

void expect_refused(const TemporaryFolder& folder, const std::string& bytes,
                    const std::vector<std::string>& words) {
  const std::string path = folder.write("bad.gguf", bytes);
  const Result<ModelSource> source = load_gguf_model(path);
  ASSERT_FALSE(source.ok());
  const std::string& message = source.status().message();
  EXPECT_TRUE(message.starts_with(path + ": ")) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_LT(message.size(), 400 + path.size()) << message;
  for (const std::string& word : words)
    EXPECT_NE(message.find(word), std::string::npos) << message << "\nlacks: " << word;
}

TEST(Gguf, LoadsBothArchitecturesAndVersions) {
  const TemporaryFolder folder;
  for (const char* architecture : {"llama", "qwen2"})
    for (const uint32_t version : {2U, 3U}) {
      TinyModelOptions options;
      options.architecture = architecture;
      GgufWriter writer = tiny_model(options);
      writer.version = version;
      const Result<ModelSource> source = load_gguf_model(folder.write("good.gguf", writer.build()));
      ASSERT_TRUE(source.ok()) << source.status().message();
      EXPECT_EQ(source->config.layers, 2);
      EXPECT_EQ(source->config.head_dim, 16);
      EXPECT_EQ(source->layers[1].bq.data != nullptr, std::string(architecture) == "qwen2");
      EXPECT_EQ(source->fingerprint.size(), 16U);
      EXPECT_TRUE(source->tied_output);
    }
}

TEST(Gguf, FingerprintTellsWeightsApart) {
  const TemporaryFolder folder;
  TinyModelOptions options;
  const auto print = [&] {
    return load_gguf_model(folder.write("m.gguf", tiny_model(options).build()))->fingerprint;
  };
  const std::string first = print();
  EXPECT_EQ(first, print());
  options.seed = 2;
  EXPECT_NE(first, print());
  options.seed = 1;
  options.type = WeightType::kQ8_0;
  EXPECT_NE(first, print());
}

TEST(Gguf, ReadsTypedMetadata) {
  const TemporaryFolder folder;
  GgufWriter writer;
  writer.value("i8", GgufType::kInt8, int8_t{-5}).value("u64", GgufType::kUint64, uint64_t{1} << 40);
  writer.value("f64", GgufType::kFloat64, 2.5).boolean("b", true).string("s", "text").ints("list", {3, -4});
  writer.value("big", GgufType::kUint64, std::numeric_limits<uint64_t>::max());
  const Result<GgufFile> file = GgufFile::open(folder.write("m.gguf", writer.build()));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(*file->integer("i8"), -5);
  EXPECT_EQ(*file->integer("u64"), int64_t{1} << 40);
  EXPECT_EQ(*file->number("f64"), 2.5);
  EXPECT_TRUE(*file->boolean("b"));
  EXPECT_EQ(*file->string("s"), "text");
  EXPECT_EQ(*file->integers("list"), (std::vector<int32_t>{3, -4}));
  EXPECT_FALSE(file->integer("big").ok());
  EXPECT_FALSE(file->integer("f64").ok());
  EXPECT_FALSE(file->string("absent").ok());
  EXPECT_FALSE(file->strings("list").ok());
}

struct Broken {
  const char* name;
  std::function<void(GgufWriter&)> breaks;
  std::vector<std::string> words;
};

class BrokenGguf : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenGguf, IsRefused) {
  const TemporaryFolder folder;
  GgufWriter writer = tiny_model();
  GetParam().breaks(writer);
  expect_refused(folder, writer.build(), GetParam().words);
}

std::string array(GgufType element, uint64_t count, const std::string& data) {
  return Bytes()
      .put(static_cast<uint32_t>(GgufType::kArray))
      .put(static_cast<uint32_t>(element))
      .put(count)
      .raw(data)
      .str();
}

GgufWriter::Tensor& tensor(GgufWriter& w, const char* name) {
  for (GgufWriter::Tensor& t : w.tensors)
    if (t.name == name) return t;
  std::abort();
}

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

const Broken kHeader[] = {
    {"magic", [](GgufWriter& w) { w.magic = 0x12345678; }, {"magic", "offset 0", "0x12345678"}},
    {"big_endian", [](GgufWriter& w) { w.magic = 0x47475546; }, {"magic", "little-endian"}},
    {"version_0", [](GgufWriter& w) { w.version = 0; }, {"version", "found 0", "2 or 3"}},
    {"version_1", [](GgufWriter& w) { w.version = 1; }, {"version", "found 1"}},
    {"version_4", [](GgufWriter& w) { w.version = 4; }, {"version", "found 4"}},
    {"version_big_endian", [](GgufWriter& w) { w.version = 0x03000000; }, {"version"}},
    {"CVE_2024_21836_tensor_count",
     [](GgufWriter& w) { w.tensor_count = GgufWriter::kMinusOne; },
     {"tensor count", "18446744073709551615"}},
    {"CVE_2024_23605_metadata_count",
     [](GgufWriter& w) { w.entry_count = GgufWriter::kMinusOne; },
     {"metadata count"}},
    {"tensor_count_too_large", [](GgufWriter& w) { w.tensor_count = 23; }, {"offset"}},
    {"entry_count_too_large", [](GgufWriter& w) { w.entry_count = 1000; }, {"offset"}},
    {"duplicate_key",
     [](GgufWriter& w) { w.add_entry("general.name", Bytes().put(8U).text("x").str()); },
     {"general.name", "second time"}},
    {"empty_key", [](GgufWriter& w) { w.add_entry("", Bytes().put(8U).text("x").str()); }, {"metadata key"}},
    {"value_type_13",
     [](GgufWriter& w) { w.entry("general.name", Bytes().put(13U).put(0U).str()); },
     {"value type of 'general.name'", "13"}},
    {"CVE_2024_23496_string_length",
     [](GgufWriter& w) { w.entry("general.name", Bytes().put(8U).put(kMax).str()); },
     {"general.name", "length"}},
    {"string_length_2_63",
     [](GgufWriter& w) { w.entry("general.name", Bytes().put(8U).put(uint64_t{1} << 63).str()); },
     {"general.name"}},
    {"array_length_2_63",
     [](GgufWriter& w) { w.entry("x", array(GgufType::kUint8, uint64_t{1} << 63, "")); },
     {"'x'", "9223372036854775808"}},
    {"array_length_wraps",
     [](GgufWriter& w) { w.entry("x", array(GgufType::kUint64, (kMax / 8) + 2, "")); },
     {"'x'"}},
    {"CVE_2024_21825_string_array_length",
     [](GgufWriter& w) { w.entry("x", array(GgufType::kString, kMax, "")); },
     {"'x'"}},
    {"nested_array",
     [](GgufWriter& w) { w.entry("x", array(GgufType::kArray, 1, "")); },
     {"'x'", "arrays of arrays"}},
    {"bool_of_2", [](GgufWriter& w) { w.value("x", GgufType::kBool, uint8_t{2}); }, {"'x'", "found 2"}},
    {"alignment_0", [](GgufWriter& w) { w.u32("general.alignment", 0); }, {"general.alignment", "found 0"}},
    {"alignment_2", [](GgufWriter& w) { w.u32("general.alignment", 2); }, {"general.alignment", "found 2"}},
    {"alignment_odd", [](GgufWriter& w) { w.u32("general.alignment", 33); }, {"general.alignment", "33"}},
    {"alignment_huge", [](GgufWriter& w) { w.u32("general.alignment", 1U << 31); }, {"general.alignment"}},
    {"alignment_a_string",
     [](GgufWriter& w) { w.string("general.alignment", "32"); },
     {"general.alignment", "found string"}},
};

const Broken kTensors[] = {
    {"no_dimensions",
     [](GgufWriter& w) { w.tensors[0].dimensions = 0; },
     {"dimension count of tensor 'token_embd.weight'", "found 0"}},
    {"CVE_2024_21802_five_dimensions",
     [](GgufWriter& w) { w.tensors[0].dimensions = 5; },
     {"dimension count", "found 5"}},
    {"zero_dimension",
     [](GgufWriter& w) { w.tensors[0].shape[1] = 0; },
     {"dimension 1 of tensor 'token_embd.weight'"}},
    {"product_wraps",
     [](GgufWriter& w) {
       w.tensors[0].shape = {uint64_t{1} << 33, uint64_t{1} << 33};
     },
     {"dimension 1"}},
    {"int64_max_by_2",
     [](GgufWriter& w) {
       w.tensors[0].shape = {std::numeric_limits<int64_t>::max(), 2};
     },
     {"dimension 1"}},
    {"four_way_wrap",
     [](GgufWriter& w) {
       w.tensors[0].shape = {1U << 16, 1U << 16, 1U << 16, 1U << 16};
     },
     {"dimension 3"}},
    {"CVE_2026_7482_larger_than_file",
     [](GgufWriter& w) { w.tensors[0].shape[1] = 1 << 20; },
     {"token_embd.weight"}},
    {"unknown_type",
     [](GgufWriter& w) { w.tensors[0].type = 99; },
     {"type of tensor 'token_embd.weight'", "99", "q4_0"}},
    {"removed_type", [](GgufWriter& w) { w.tensors[0].type = 4; }, {"type of tensor"}},
    {"row_not_whole_blocks",
     [](GgufWriter& w) { w.tensors[0].shape[0] = 40; },
     {"40 columns", "multiple of 32"}},
    {"offset_past_the_end",
     [](GgufWriter& w) { w.tensors[0].offset = 1 << 30; },
     {"data of tensor 'token_embd.weight'"}},
    {"offset_wraps",
     [](GgufWriter& w) { w.tensors[0].offset = std::numeric_limits<int64_t>::max() - 31; },
     {"token_embd.weight"}},
    {"offset_misaligned",
     [](GgufWriter& w) { w.tensors[1].offset = 33; },
     {"offset of tensor", "multiple of 32"}},
    {"overlap", [](GgufWriter& w) { w.tensors[1].offset = 0; }, {"overlap"}},
    {"duplicate_tensor", [](GgufWriter& w) { w.tensors.push_back(w.tensors.back()); }, {"a second time"}},
    {"missing_tensor",
     [](GgufWriter& w) { tensor(w, "blk.1.attn_k.weight").name = "other"; },
     {"'blk.1.attn_k.weight' is missing"}},
    {"wrong_shape",
     [](GgufWriter& w) {
       std::swap(tensor(w, "blk.0.ffn_up.weight").shape[0], tensor(w, "blk.0.ffn_up.weight").shape[1]);
     },
     {"'blk.0.ffn_up.weight'", "[96, 64]", "[64, 96]"}},
    {"three_dimensional_matrix",
     [](GgufWriter& w) {
       tensor(w, "blk.0.ffn_up.weight").shape = {64, 48, 2};
     },
     {"'blk.0.ffn_up.weight'", "[64, 48, 2]"}},
    {"quantised_norm",
     [](GgufWriter& w) {
       tensor(w, "output_norm.weight").type = 8;
       tensor(w, "output_norm.weight").shape = {64};
     },
     {"'output_norm.weight'", "q8_0", "f32"}},
};

const Broken kMetadata[] = {
    {"unknown_architecture",
     [](GgufWriter& w) { w.string("general.architecture", "gpt9"); },
     {"general.architecture", "gpt9", "llama"}},
    {"architecture_a_number",
     [](GgufWriter& w) { w.u32("general.architecture", 1); },
     {"general.architecture", "found uint32"}},
    {"no_heads",
     [](GgufWriter& w) { w.u32("llama.attention.head_count", 0); },
     {"llama.attention.head_count", "found 0"}},
    {"heads_not_divisible",
     [](GgufWriter& w) { w.u32("llama.attention.head_count_kv", 3); },
     {"head_count_kv", "divisor"}},
    {"model_dim_not_divisible",
     [](GgufWriter& w) { w.u32("llama.attention.head_count", 6); },
     {"head_count"}},
    {"negative_layers",
     [](GgufWriter& w) { w.value("llama.block_count", GgufType::kInt32, int32_t{-1}); },
     {"llama.block_count", "-1"}},
    {"huge_layers", [](GgufWriter& w) { w.u32("llama.block_count", 4000000000U); }, {"llama.block_count"}},
    {"more_layers_than_tensors", [](GgufWriter& w) { w.u32("llama.block_count", 3); }, {"blk.2."}},
    {"rope_base_0", [](GgufWriter& w) { w.f32("llama.rope.freq_base", 0); }, {"rope.freq_base", "found 0"}},
    {"rope_base_nan",
     [](GgufWriter& w) { w.f32("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN()); },
     {"rope.freq_base"}},
    {"epsilon_nan",
     [](GgufWriter& w) {
       w.f32("llama.attention.layer_norm_rms_epsilon", std::numeric_limits<float>::quiet_NaN());
     },
     {"epsilon"}},
    {"epsilon_infinite",
     [](GgufWriter& w) {
       w.f32("llama.attention.layer_norm_rms_epsilon", std::numeric_limits<float>::infinity());
     },
     {"epsilon"}},
    {"odd_rotary_dim",
     [](GgufWriter& w) { w.u32("llama.rope.dimension_count", 15); },
     {"rope.dimension_count", "even"}},
    {"rotary_dim_too_large",
     [](GgufWriter& w) { w.u32("llama.rope.dimension_count", 32); },
     {"rope.dimension_count"}},
    {"rope_scaling_yarn",
     [](GgufWriter& w) { w.string("llama.rope.scaling.type", "yarn"); },
     {"rope.scaling.type", "yarn"}},
    {"value_length_differs",
     [](GgufWriter& w) { w.u32("llama.attention.value_length", 8); },
     {"value_length"}},
    {"fewer_tokens_than_embeddings",
     [](GgufWriter& w) {
       w.strings("tokenizer.ggml.tokens", {"a", "b"})
           .remove("tokenizer.ggml.token_type")
           .remove("tokenizer.ggml.eos_token_id");
     },
     {"token_embd.weight"}},
    {"no_tokens", [](GgufWriter& w) { w.strings("tokenizer.ggml.tokens", {}); }, {"tokenizer.ggml.tokens"}},
    {"types_of_wrong_length",
     [](GgufWriter& w) {
       w.ints("tokenizer.ggml.token_type", {1, 1});
     },
     {"tokenizer.ggml.token_type", "2 values"}},
    {"types_of_wrong_element",
     [](GgufWriter& w) { w.strings("tokenizer.ggml.token_type", {"a"}); },
     {"tokenizer.ggml.token_type", "array of string"}},
    {"type_beyond_32_bits",
     [](GgufWriter& w) {
       w.entry("tokenizer.ggml.token_type",
               array(GgufType::kInt64, 1, Bytes().put((int64_t{1} << 32) + 1).str()));
     },
     {"tokenizer.ggml.token_type", "element 0", "32 bits"}},
    {"scores_of_wrong_element",
     [](GgufWriter& w) { w.ints("tokenizer.ggml.scores", {1}); },
     {"tokenizer.ggml.scores", "float32"}},
    {"eos_out_of_range",
     [](GgufWriter& w) { w.u32("tokenizer.ggml.eos_token_id", 100000); },
     {"eos_token_id", "100000"}},
    {"bos_missing_but_added",
     [](GgufWriter& w) { w.boolean("tokenizer.ggml.add_bos_token", true); },
     {"add_bos_token"}},
};

// Llama 3's divisors of RoPE's angles.
std::vector<Broken> rope_divisor_cases() {
  std::vector<Broken> cases;
  const auto add = [&](const char* name, float divisor) {
    const auto breaks = [divisor](GgufWriter& w) {
      Bytes data;
      for (int i = 0; i < 8; ++i) data.put(i == 5 ? divisor : 1.0F);
      w.tensors.push_back({"rope_freqs.weight", {8}, 0, data.str()});
    };
    cases.push_back({name, breaks, {"'rope_freqs.weight'", "finite numbers above 0"}});
  };
  add("rope_divisor_0", 0);
  add("rope_divisor_negative", -1);
  add("rope_divisor_infinite", INFINITY);
  add("rope_divisor_nan", NAN);
  return cases;
}

// Every key that the loader needs, missing and of another type.
std::vector<Broken> needed_key_cases() {
  std::vector<Broken> cases;
  for (const char* key :
       {"llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.model",
        "tokenizer.ggml.tokens"}) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '.', '_');
    static std::vector<std::string> names;
    names.reserve(64);
    names.push_back(name + "_missing");
    cases.push_back({names.back().c_str(), [key](GgufWriter& w) { w.remove(key); }, {key, "missing"}});
    names.push_back(name + "_of_wrong_type");
    cases.push_back(
        {names.back().c_str(), [key](GgufWriter& w) { w.boolean(key, true); }, {key, "found bool"}});
  }
  return cases;
}

const auto kName = [](const auto& param) { return std::string(param.param.name); };
INSTANTIATE_TEST_SUITE_P(Header, BrokenGguf, ::testing::ValuesIn(kHeader), kName);
INSTANTIATE_TEST_SUITE_P(Tensors, BrokenGguf, ::testing::ValuesIn(kTensors), kName);
INSTANTIATE_TEST_SUITE_P(Metadata, BrokenGguf, ::testing::ValuesIn(kMetadata), kName);
INSTANTIATE_TEST_SUITE_P(RopeDivisors, BrokenGguf, ::testing::ValuesIn(rope_divisor_cases()), kName);
INSTANTIATE_TEST_SUITE_P(NeededKeys, BrokenGguf, ::testing::ValuesIn(needed_key_cases()), kName);

TEST(Gguf, AStringThatEndsBehindTheFileIsRefusedAsThat) {
  const TemporaryFolder folder;
  const Bytes start = Bytes().put(0x46554747U).put(3U).put(uint64_t{0}).put(uint64_t{1}).text("a").put(8U);
  expect_refused(folder, Bytes(start).put(uint64_t{4}).raw("xyz").str(), {"'a'", "found 4", "at most 3"});
}

TEST(Gguf, TruncationAtEveryByteIsRefused) {
  const TemporaryFolder folder;
  TinyModelOptions options;
  options.layers = 1;
  options.heads = 2;
  options.kv_heads = 1;
  options.ffn_dim = 32;
  const std::string whole = tiny_model(options).build();
  ASSERT_TRUE(load_gguf_model(folder.write("whole.gguf", whole)).ok());
  // Every byte of the header, then steps through the data, where one byte is like another; and the last one.
  size_t step = 1;
  for (size_t size = 1; size < whole.size(); size += step) {
    if (size > 9000) step = 101;
    ASSERT_FALSE(load_gguf_model(folder.write("cut.gguf", whole.substr(0, size))).ok()) << size;
  }
  expect_refused(folder, whole.substr(0, whole.size() - 1), {"data of tensor"});
  EXPECT_FALSE(load_model_source(folder.write("empty.gguf", "")).ok());
}

// Any byte may be anything: the file loads or is refused with one line, and whatever loads can make a
// tokenizer or not.
TEST(Gguf, RandomDamageNeverCrashes) {
  const TemporaryFolder folder;
  const std::string whole = tiny_model().build();
  const size_t header = whole.size() - 40000;
  Random random(1);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (uint64_t n = 1 + random.below(4); n > 0; --n) {
      const size_t at = random.below(header);
      bytes[at] = random.below(2) != 0 ? static_cast<char>(random.below(256))
                                       : static_cast<char>(bytes[at] ^ (1 << random.below(8)));
    }
    const Result<ModelSource> source = load_gguf_model(folder.write("damaged.gguf", bytes));
    if (!source.ok()) {
      ASSERT_EQ(source.status().message().find('\n'), std::string::npos);
      continue;
    }
    const auto tokenizer = Tokenizer::create(source->vocabulary, source->storage);
    if (tokenizer.ok()) (*tokenizer)->encode("the <|im_start|> thin man 42");
  }
}

TEST(ModelLoader, RefusesOtherFiles) {
  const TemporaryFolder folder;
  const Result<ModelSource> text = load_model_source(folder.write("a.txt", "hello"));
  ASSERT_FALSE(text.ok());
  EXPECT_NE(text.status().message().find("68 65 6c 6c"), std::string::npos) << text.status().message();
  EXPECT_FALSE(load_model_source(folder.file("absent")).ok());
  EXPECT_FALSE(load_model_source("/").ok());
  EXPECT_FALSE(load_model_source(folder.write("short", "GG")).ok());
}

}  // namespace
}  // namespace kvfold::testing
