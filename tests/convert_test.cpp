// Models written as GGUF, and quantised on load: against the checkpoints that they come from.
#include "loaders/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kernels/formats/formats.h"
#include "loaders/model_loader.h"
#include "loaders/open.h"
#include "tests/temporary.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

const std::string kData = std::string(KVFOLD_SOURCE_DIR) + "/tests/data/checkpoints/";

Quantization quantization(const std::string& name) {
  const Result<Quantization> parsed = Quantization::parse(name);
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return *parsed;
}

std::vector<float> logits(const std::string& path, const std::string& quantize = "none") {
  OpenOptions options;
  options.cpu.precision = Precision::kExact;
  options.session.cache_type = CacheType::kF32;
  options.quantization = quantization(quantize);
  const Result<std::unique_ptr<Session>> session = open_session(path, options);
  EXPECT_TRUE(session.ok()) << session.status().message();
  if (!session.ok()) return {};
  KvCache cache = (*session)->make_cache();
  const Result<std::vector<float>> out =
      (*session)->feed(cache, (*session)->tokenizer().encode("hello you there"));
  EXPECT_TRUE(out.ok()) << out.status().message();
  return out.ok() ? *out : std::vector<float>();
}

std::string convert(const TemporaryFolder& folder, const std::string& from, const std::string& quantize) {
  const Result<ModelSource> source = load_model_source(from);
  EXPECT_TRUE(source.ok()) << source.status().message();
  ThreadPool pool(2);
  const std::string path = folder.file("out.gguf");
  const Status status = convert_to_gguf(*source, quantization(quantize), pool, path);
  EXPECT_TRUE(status.ok()) << status.message();
  return path;
}

// The permutation of q and k changes no product and no sum, so that the logits are the same bits.
class Converted : public ::testing::TestWithParam<const char*> {};
TEST_P(Converted, GivesTheSameLogits) {
  const TemporaryFolder folder;
  const std::string checkpoint = kData + GetParam();
  EXPECT_EQ(logits(convert(folder, checkpoint, "none")), logits(checkpoint));
}
TEST_P(Converted, AsQuantisedOnLoad) {
  const TemporaryFolder folder;
  const std::string checkpoint = kData + GetParam();
  for (const char* type : {"q4_0", "q4_1", "q8_0", "q4_k"}) {
    const std::vector<float> converted = logits(convert(folder, checkpoint, type));
    EXPECT_EQ(converted, logits(checkpoint, type)) << type;
    EXPECT_NE(converted, logits(checkpoint)) << type;
  }
}
// What was quantised is not held beside what the backend made of it, and no result needs it any more.
TEST_P(Converted, QuantisedOnLoadIsHeldOnce) {
  const TemporaryFolder folder;
  const std::string checkpoint = kData + GetParam();
  std::vector<std::vector<float>> results;
  for (const bool on_load : {true, false}) {
    OpenOptions options;
    if (on_load) options.quantization = quantization("q8_0");
    const Result<std::unique_ptr<Session>> session =
        open_session(on_load ? checkpoint : convert(folder, checkpoint, "q8_0"), options);
    ASSERT_TRUE(session.ok()) << session.status().message();
    const ModelSource& source = (*session)->model().source();
    const bool packs = select_cpu_kernels()->pack != nullptr;
    for (const LayerTensors& layer : source.layers)
      for (const MatrixView* view : {&layer.wq, &layer.wo, &layer.gate, &layer.up, &layer.down})
        EXPECT_EQ(view->data == nullptr, on_load && packs && view->type == WeightType::kQ8_0);
    EXPECT_NE(source.embedding.data, nullptr);
    KvCache cache = (*session)->make_cache();
    const Result<std::vector<float>> logits =
        (*session)->feed(cache, (*session)->tokenizer().encode("hello you there"));
    ASSERT_TRUE(logits.ok()) << logits.status().message();
    results.push_back(*logits);
  }
  EXPECT_EQ(results[0], results[1]);
}
INSTANTIATE_TEST_SUITE_P(, Converted,
                         ::testing::Values("llama-32-4", "llama-9-3-tied", "llama-1kv-48", "mistral-128"),
                         [](const ::testing::TestParamInfo<const char*>& info_) {
                           std::string name = info_.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST(Conversion, KeepsConfigurationAndVocabulary) {
  const TemporaryFolder folder;
  for (const char* name : {"llama-1kv-48", "llama-bias", "qwen2-14-2-tied", "qwen3-128-tied"}) {
    const Result<ModelSource> a = load_model_source(kData + name);
    const Result<ModelSource> b = load_model_source(convert(folder, kData + name, "none"));
    ASSERT_TRUE(a.ok() && b.ok()) << name;
    EXPECT_EQ(a->config.rope_factors, b->config.rope_factors);
    EXPECT_EQ(a->config.rope_base, b->config.rope_base);
    EXPECT_EQ(a->config.norm_epsilon, b->config.norm_epsilon);
    EXPECT_EQ(a->config.context_length, b->config.context_length);
    EXPECT_EQ(a->config.attention_window, b->config.attention_window);
    EXPECT_EQ(a->config.head_dim, b->config.head_dim);
    EXPECT_EQ(a->tied_output, b->tied_output);
    EXPECT_EQ(a->layers[1].bo.rows, b->layers[1].bo.rows);
    EXPECT_EQ(a->vocabulary.tokens, b->vocabulary.tokens);
    EXPECT_EQ(a->vocabulary.types, b->vocabulary.types);
    EXPECT_EQ(a->vocabulary.merges, b->vocabulary.merges);
    EXPECT_EQ(a->vocabulary.bos, b->vocabulary.bos);
    EXPECT_EQ(a->vocabulary.eos, b->vocabulary.eos);
    EXPECT_EQ(a->vocabulary.add_bos, b->vocabulary.add_bos);
  }
}

TEST(Conversion, KeepsTheWindow) {
  const TemporaryFolder folder;
  const std::string tiny =
      folder.write("tiny.gguf", tiny_model().u32("llama.attention.sliding_window", 100).build());
  const Result<ModelSource> converted = load_model_source(convert(folder, tiny, "none"));
  ASSERT_TRUE(converted.ok()) << converted.status().message();
  EXPECT_EQ(converted->config.attention_window, 100);
}

// A GGUF file goes through unchanged, and comes out the same when it is converted again.
TEST(Conversion, SaysWhatIsLost) {
  ModelSource source;
  source.config.architecture = "llama";
  source.layers.resize(1);
  VocabularySource& v = source.vocabulary;
  v.model = "llama";
  v.eos = 2;
  v.end_tokens = {2, 3, 4};
  EXPECT_TRUE(gguf_remarks(source).empty());
  v.end_tokens.push_back(5);
  EXPECT_EQ(gguf_remarks(source).size(), 1U);
  v.space_prefix = SpacePrefix::kText;
  v.one_space = true;
  v.symbols_in_text = true;
  EXPECT_EQ(gguf_remarks(source).size(), 4U);
  source.vocabulary = {};
  source.config.rope_factors = {1, 2};
  source.config.heads = 2;
  source.config.head_dim = 4;
  source.config.model_dim = 16;
  EXPECT_TRUE(gguf_remarks(source).empty());
  source.config.architecture = "qwen2";
  EXPECT_EQ(gguf_remarks(source).size(), 2U);
  source.config.architecture = "qwen3";
  const std::byte bias{};
  source.layers[0].bq.data = &bias;
  EXPECT_EQ(gguf_remarks(source).size(), 2U);
}

TEST(Conversion, GgufToGguf) {
  const TemporaryFolder folder;
  const std::string tiny = folder.write("tiny.gguf", tiny_model().build());
  const std::string once = convert(folder, tiny, "none");
  EXPECT_EQ(logits(once), logits(tiny));
  const std::string bytes = TemporaryFolder::read(once);
  EXPECT_EQ(TemporaryFolder::read(convert(folder, once, "none")), bytes);
}

// Of heads that are turned in part, the rest stays where it is.
TEST(Conversion, RowsThatAreNotTurnedAreNotMoved) {
  const TemporaryFolder folder;
  Result<ModelSource> source = load_model_source(kData + "llama-1kv-48");  // heads of 48
  ASSERT_TRUE(source.ok()) << source.status().message();
  source->config.rope_factors = {};
  source->config.rotary_dim = 4;
  ThreadPool pool(1);
  ASSERT_TRUE(convert_to_gguf(*source, {}, pool, folder.file("out.gguf")).ok());
  const Result<ModelSource> converted = load_model_source(folder.file("out.gguf"));
  ASSERT_TRUE(converted.ok()) << converted.status().message();
  const MatrixView& from = source->layers[0].wq;
  const auto bytes = static_cast<size_t>(from.columns * format_info(from.type).block_bytes);
  for (int64_t row = 0; row < from.rows; ++row) {
    constexpr int64_t kFrom[] = {0, 2, 1, 3};  // pairs (0, 2) and (1, 3) become neighbours
    const int64_t at = row % 48 < 4 ? row - row % 48 + kFrom[row % 48] : row;
    EXPECT_EQ(std::memcmp(converted->layers[0].wq.data + row * bytes, from.data + at * bytes, bytes), 0)
        << row;
  }
}

TEST(Conversion, NothingIsLeftOfAFileThatCannotBeWritten) {
  const TemporaryFolder folder;
  const Result<ModelSource> source = load_model_source(kData + "llama-32-4");
  ASSERT_TRUE(source.ok());
  ThreadPool pool(1);
  const Status status = convert_to_gguf(*source, {}, pool, folder.file("absent/out.gguf"));
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("absent"), std::string::npos) << status.message();
  EXPECT_EQ(folder.entries(), 0U);
}

// Rows that a format's blocks do not divide take the next best, and what makes the logits keeps more bits.
TEST(Quantization, TypesFitTheRows) {
  const auto type = [](const char* name, int64_t columns, bool makes_logits = false) {
    return quantization(name).type_of({WeightType::kF16, 4, columns, nullptr}, makes_logits);
  };
  EXPECT_EQ(type("none", 64), WeightType::kF16);
  EXPECT_EQ(type("q4_0", 64), WeightType::kQ4_0);
  EXPECT_EQ(type("q4_0", 48), WeightType::kF16);
  EXPECT_EQ(type("q4_k", 512), WeightType::kQ4_K);
  EXPECT_EQ(type("q4_k", 960), WeightType::kQ5_0);
  EXPECT_EQ(type("q4_0", 512, true), WeightType::kQ6_K);
  EXPECT_EQ(type("q4_1", 960, true), WeightType::kQ8_0);
  EXPECT_EQ(type("q8_0", 512, true), WeightType::kQ8_0);
  EXPECT_EQ(Quantization::parse("q3_k").status().message(),
            "--quantize q3_k: expected q4_0, q4_1, q8_0, q4_k or none");
  EXPECT_TRUE(Quantization::parse("")->none);
}

// llama.cpp's numbers (enum llama_ftype).
TEST(Quantization, FileTypes) {
  const auto number = [](const char* name, WeightType stored) {
    return quantization(name).file_type(stored);
  };
  EXPECT_EQ(number("none", WeightType::kF32), 0U);
  EXPECT_EQ(number("none", WeightType::kF16), 1U);
  EXPECT_EQ(number("none", WeightType::kBF16), 32U);
  EXPECT_EQ(number("none", WeightType::kQ4_0), 2U);
  EXPECT_EQ(number("none", WeightType::kQ4_1), 3U);
  EXPECT_EQ(number("q8_0", WeightType::kF32), 7U);
  EXPECT_EQ(number("q4_k", WeightType::kF16), 14U);
}

TEST(Quantization, WhatHasTheTypeStays) {
  const TemporaryFolder folder;
  TinyModelOptions options;
  options.type = WeightType::kQ8_0;
  Result<ModelSource> loaded = load_model_source(folder.write("tiny.gguf", tiny_model(options).build()));
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  loaded->release = {};  // as of a source that is in no file
  ThreadPool pool(2);
  for (const char* type : {"none", "q8_0"}) {
    const ModelSource same = *quantize_model(*loaded, quantization(type), pool);
    EXPECT_EQ(same.layers[1].down.data, loaded->layers[1].down.data);
    EXPECT_EQ(same.fingerprint, loaded->fingerprint);
  }
  const ModelSource other = *quantize_model(*loaded, quantization("q4_0"), pool);
  EXPECT_EQ(other.layers[1].down.type, WeightType::kQ4_0);
  EXPECT_NE(other.fingerprint, loaded->fingerprint);
  EXPECT_TRUE(convert_to_gguf(*loaded, quantization("q4_0"), pool, folder.file("out.gguf")).ok());
  EXPECT_EQ(load_model_source(folder.file("out.gguf"))->fingerprint, other.fingerprint);
}

}  // namespace
}  // namespace kvfold::testing
