// Hugging Face checkpoints: the logits that transformers computed from them
// (tests/oracle/make_checkpoints.py), and folders that are broken in every way, each of which is refused with
// one line naming file and key.
#include "loaders/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "loaders/open.h"
#include "tests/checkpoint_copy.h"
#include "tests/npy.h"

namespace kvfold::testing {
namespace {

// The largest difference of two rows of logits, as a share of the reference's largest magnitude.
double worst(std::span<const float> ours, std::span<const float> reference) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(ours[i]) - reference[i]));
    largest = std::max(largest, std::abs(static_cast<double>(reference[i])));
  }
  return difference / largest;
}

class Checkpoint : public ::testing::TestWithParam<const char*> {};

TEST_P(Checkpoint, GivesTheLogitsOfTransformers) {
  const std::string folder = kCheckpoints + GetParam();
  OpenOptions options;
  options.cpu.precision = Precision::kExact;
  options.session.cache_type = CacheType::kF32;
  const Result<std::unique_ptr<Session>> session = open_session(folder, options);
  ASSERT_TRUE(session.ok()) << session.status().message();
  const auto tokens = Json::parse(TemporaryFolder::read(folder + "/tokens.json")).get<std::vector<TokenId>>();
  const std::vector<float> reference = read_npy<float>(folder + "/logits.npy");
  ASSERT_EQ(reference.size(), static_cast<size_t>((*session)->model().config().vocab_size));
  KvCache cache = (*session)->make_cache();
  const Result<std::vector<float>> logits = (*session)->feed(cache, tokens);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  const double error = worst(*logits, reference);

  EXPECT_LT(error, 1e-5);  // observed: at most 2e-6
}

std::string name_of(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::ranges::replace(name, '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(, Checkpoint,
                         ::testing::Values("llama-32-4", "llama-15-5-tied", "llama-9-3-tied",
                                           "qwen2-14-2-tied", "llama-1kv-48", "llama-bias", "mistral-128",
                                           "qwen2-all-heads", "qwen3-48", "qwen3-128-tied"),
                         name_of);

struct Broken {
  const char* name;
  const char* checkpoint;
  const char* file;  // that the message names
  std::function<void(const Copy&)> breaks;
  std::vector<std::string> words;
};
void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }

class BrokenCheckpoint : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenCheckpoint, IsRefused) {
  const Copy copy(GetParam().checkpoint);
  ASSERT_TRUE(load_checkpoint(copy.path()).ok());
  GetParam().breaks(copy);
  const Result<ModelSource> source = load_checkpoint(copy.path());
  ASSERT_FALSE(source.ok());
  const std::string& message = source.status().message();
  EXPECT_NE(message.find(std::string("/") + GetParam().file), std::string::npos) << message;
  EXPECT_LT(message.size(), 500 + copy.path().size()) << message;
  for (const char c : message) ASSERT_TRUE(c >= ' ' && c < 127) << message;
  for (const std::string& word : GetParam().words)
    EXPECT_NE(message.find(word), std::string::npos) << message << "\nlacks: " << word;
}

constexpr const char* kConfig = "config.json";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kWeights = "model.safetensors";

// config.json with one key changed, or taken out where the value is null.
Broken config(const char* name, const char* key, const Json& value, std::vector<std::string> words) {
  words.insert(words.begin(), key);
  return {name, "llama-32-4", kConfig,
          [key, value](const Copy& copy) {
            copy.edit(kConfig, [&](Json& json) {
              if (value.is_null()) {
                json.erase(key);
              } else {
                json[key] = value;
              }
            });
          },
          std::move(words)};
}

Broken rope(const char* name, const Json& value, std::vector<std::string> words) {
  return config(name, "rope_parameters", value, std::move(words));
}

const Broken kConfigs[] = {
    {"absent", "llama-32-4", kConfig, [](const Copy& c) { c.remove(kConfig); }, {}},
    {"empty", "llama-32-4", kConfig, [](const Copy& c) { c.write(kConfig, ""); }, {}},
    {"torn",
     "llama-32-4",
     kConfig,
     [](const Copy& c) { c.write(kConfig, c.read(kConfig).substr(0, 100)); },
     {"not JSON", "offset"}},
    {"array",
     "llama-32-4",
     kConfig,
     [](const Copy& c) { c.write(kConfig, "[1, 2]"); },
     {"an array of 2", "object"}},
    {"two_values",
     "llama-32-4",
     kConfig,
     [](const Copy& c) { c.write(kConfig, c.read(kConfig) + "{}"); },
     {"not JSON"}},
    {"null_byte",
     "llama-32-4",
     kConfig,
     [](const Copy& c) { c.write(kConfig, c.read(kConfig) + std::string(1, '\0') + "rest"); },
     {"null byte"}},
    {"not_utf8",
     "llama-32-4",
     kConfig,
     [](const Copy& c) { c.write(kConfig, "{\"model_type\": \"\xFF\"}"); },
     {"not JSON"}},
    {"key_twice",
     "llama-32-4",
     kConfig,
     [](const Copy& c) {
       c.write(kConfig, R"({"model_type": "llama", "hidden_size": 64, "hidden_size": 65})");
     },
     {"hidden_size", "twice"}},
    {"deep",
     "llama-32-4",
     kConfig,
     [](const Copy& c) {
       c.write(kConfig, "{\"a\": " + std::string(100000, '[') + std::string(100000, ']') + "}");
     },
     {"level 65 at offset 69", "at most 64"}},
    config("no_type", "model_type", nullptr, {"none", "string"}),
    config("other_type", "model_type", "gpt_neox", {"gpt_neox", "llama", "qwen3"}),
    config("control_characters", "model_type", "a\nb\x1b[31m", {}),
    config("type_is_number", "model_type", 5, {"the number 5", "string"}),
    config("quantised", "quantization_config", Json{{"bits", 4}}, {"F32, F16 or BF16"}),
    config("gelu", "hidden_act", "gelu", {"gelu", "silu"}),
    config("mlp_bias", "mlp_bias", true, {"true", "false"}),
    config("no_layers", "num_hidden_layers", nullptr, {"none", "integer"}),
    config("zero_layers", "num_hidden_layers", 0, {"found 0"}),
    config("negative_layers", "num_hidden_layers", -3, {"found -3"}),
    config("fraction", "num_hidden_layers", 2.5, {"2.5", "integer"}),
    config("too_many_layers", "num_hidden_layers", 1'000'000, {"1000000", "4096"}),
    config("huge_integer", "num_hidden_layers", 18'446'744'073'709'551'615U, {"integer"}),
    config("huge_width", "hidden_size", int64_t{1} << 40, {"1099511627776"}),
    config("huge_vocabulary", "vocab_size", int64_t{1} << 33, {"8589934592"}),
    config("string_for_number", "intermediate_size", "48", {"string '48'"}),
    config("heads_do_not_divide", "num_key_value_heads", 5, {"5", "divisor", "32"}),
    config("odd_head", "head_dim", 3, {"3"}),
    config("too_many_heads", "num_attention_heads", 65600, {"65600", "1 to 65536"}),
    config("epsilon_zero", "rms_norm_eps", 0, {"above 0"}),
    config("epsilon_text", "rms_norm_eps", "1e-5", {"number"}),
    config("partial_rotation", "partial_rotary_factor", 0.5, {"0.5", "1"}),
    config("bos_outside", "bos_token_id", 32, {"32", "0 to 31"}),
    rope("rope_yarn", Json{{"rope_type", "yarn"}, {"factor", 4.0}}, {"yarn", "llama3"}),
    rope("rope_number", 5, {"object"}),
    rope("rope_base_zero", Json{{"rope_theta", 0}}, {"rope_theta", "above 0"}),
    rope("rope_no_factor", Json{{"rope_type", "llama3"}}, {"factor", "none"}),
    rope("rope_order",
         Json{{"rope_type", "llama3"},
              {"factor", 8},
              {"low_freq_factor", 4},
              {"high_freq_factor", 4},
              {"original_max_position_embeddings", 8192}},
         {"high_freq_factor", "low_freq_factor"}),
    {"end_outside",
     "llama-32-4",
     "generation_config.json",
     [](const Copy& c) { c.edit("generation_config.json", [](Json& j) {
                           j["eos_token_id"] = {3, 99};
                         }); },
     {"eos_token_id", "99"}},
    {"end_negative",
     "llama-32-4",
     "generation_config.json",
     [](const Copy& c) { c.edit("generation_config.json", [](Json& j) { j["eos_token_id"] = -1; }); },
     {"eos_token_id", "-1"}},
};

// The tokenizer.json of all these checkpoints is byte-level, of small letters.
Broken tokenizer(const char* name, const std::function<void(Json&)>& change, std::vector<std::string> words) {
  return {name, "llama-32-4", kTokenizer, [change](const Copy& copy) { copy.edit(kTokenizer, change); },
          std::move(words)};
}

const Broken kTokenizers[] = {
    {"absent", "llama-32-4", kTokenizer, [](const Copy& c) { c.remove(kTokenizer); }, {}},
    {"torn",
     "llama-32-4",
     kTokenizer,
     [](const Copy& c) { c.write(kTokenizer, "{\"model\": {"); },
     {"not JSON"}},
    tokenizer("no_model", [](Json& j) { j.erase("model"); }, {"model", "none"}),
    tokenizer("unigram", [](Json& j) { j["model"]["type"] = "Unigram"; }, {"model.type", "Unigram", "BPE"}),
    tokenizer("no_vocabulary", [](Json& j) { j["model"]["vocab"] = Json::object(); }, {"model.vocab"}),
    tokenizer("id_is_text", [](Json& j) { j["model"]["vocab"]["a"] = "0"; }, {"model.vocab.a"}),
    tokenizer("id_outside", [](Json& j) { j["model"]["vocab"]["a"] = 32; }, {"model.vocab.a", "32"}),
    tokenizer("id_negative", [](Json& j) { j["model"]["vocab"]["a"] = -1; }, {"model.vocab.a", "-1"}),
    tokenizer("id_taken", [](Json& j) { j["model"]["vocab"]["a"] = 1; }, {"model.vocab", "id 1"}),
    tokenizer("merge_unknown", [](Json& j) { j["model"]["merges"] = {"a b"}; }, {"merges[0]"}),
    tokenizer("merge_of_three",
              [](Json& j) {
                j["model"]["merges"] = {{"a", "b", "c"}};
              },
              {"merges[0]"}),
    tokenizer("merge_empty", [](Json& j) { j["model"]["merges"] = {""}; }, {"merges[0]"}),
    tokenizer("merge_number", [](Json& j) { j["model"]["merges"] = {7}; }, {"merges[0]", "7"}),
    tokenizer("no_merges", [](Json& j) { j["model"].erase("merges"); }, {"merges", "array"}),
    tokenizer("dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, {"dropout"}),
    tokenizer("suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, {"end_of_word_suffix"}),
    tokenizer("unknown_token", [](Json& j) { j["model"]["unk_token"] = "[UNK]"; }, {"unk_token", "[UNK]"}),
    tokenizer("added_not_object", [](Json& j) { j["added_tokens"] = {5}; }, {"added_tokens[0]"}),
    tokenizer("added_empty", [](Json& j) { j["added_tokens"][0]["content"] = ""; }, {"content", "empty"}),
    tokenizer("added_no_id", [](Json& j) { j["added_tokens"][0].erase("id"); }, {"added_tokens[0].id"}),
    tokenizer("added_strips", [](Json& j) { j["added_tokens"][0]["lstrip"] = true; }, {"lstrip"}),
    tokenizer("normaliser",
              [](Json& j) {
                j["normalizer"] = {{"type", "Lowercase"}};
              },
              {"normalizer.type", "Lowercase"}),
    tokenizer("nfc_without_qwen",
              [](Json& j) {
                j["normalizer"] = {{"type", "NFC"}};
              },
              {"normalizer", "NFC"}),
    tokenizer("pre_tokenizer",
              [](Json& j) {
                j["pre_tokenizer"] = {{"type", "Whitespace"}};
              },
              {"pre_tokenizer"}),
    tokenizer(
        "regex",
        [](Json& j) {
          j["pre_tokenizer"] = {
              {"type", "Split"}, {"pattern", {{"Regex", "x+"}}}, {"behavior", "Isolated"}, {"invert", false}};
        },
        {"Regex", "x+"}),
    tokenizer("prefix_space", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; },
              {"add_prefix_space"}),
    tokenizer("byte_fallback_without_metaspace", [](Json& j) { j["model"]["byte_fallback"] = true; },
              {"pre_tokenizer"}),
    tokenizer("post_processor",
              [](Json& j) {
                j["post_processor"] = {{"type", "BertProcessing"}};
              },
              {"post_processor", "BertProcessing"}),
    tokenizer("template_token",
              [](Json& j) {
                j["post_processor"] = {{"type", "TemplateProcessing"},
                                       {"single",
                                        {{{"SpecialToken", {{"id", "<none>"}, {"type_id", 0}}}},
                                         {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}};
              },
              {"post_processor", "<none>"}),
    {"bos_unknown",
     "llama-32-4",
     "tokenizer_config.json",
     [](const Copy& c) { c.write("tokenizer_config.json", R"({"bos_token": "<nothing>"})"); },
     {"bos_token", "<nothing>"}},
    {"bos_number",
     "llama-32-4",
     "tokenizer_config.json",
     [](const Copy& c) { c.write("tokenizer_config.json", R"({"bos_token": 5})"); },
     {"bos_token", "5"}},
    {"template_list",
     "llama-32-4",
     "tokenizer_config.json",
     [](const Copy& c) { c.write("tokenizer_config.json", R"({"chat_template": [{"name": 1}]})"); },
     {"chat_template[0].name"}},
};

const Broken kFiles[] = {
    {"no_weights", "llama-32-4", kWeights, [](const Copy& c) { c.remove(kWeights); }, {}},
    {"torn_weights",
     "llama-32-4",
     kWeights,
     [](const Copy& c) { c.write(kWeights, c.read(kWeights).substr(0, 5000)); },
     {}},
    {"not_safetensors", "llama-32-4", kWeights, [](const Copy& c) { c.write(kWeights, "not weights"); }, {}},
    {"more_layers",
     "llama-32-4",
     kWeights,
     [](const Copy& c) { c.edit(kConfig, [](Json& j) { j["num_hidden_layers"] = 3; }); },
     {"model.layers.2.input_layernorm.weight", "missing"}},
    {"other_width",
     "llama-32-4",
     kWeights,
     [](const Copy& c) { c.edit(kConfig, [](Json& j) { j["intermediate_size"] = 49; }); },
     {"model.layers.0.mlp.gate_proj.weight", "[48, 64]", "[49, 64]"}},
    {"lacks_biases",
     "llama-32-4",
     kWeights,
     [](const Copy& c) { c.edit(kConfig, [](Json& j) { j["attention_bias"] = true; }); },
     {"model.layers.0.self_attn.q_proj.bias", "missing"}},
    {"lacks_output",
     "llama-9-3-tied",
     kIndex,
     [](const Copy& c) { c.edit(kConfig, [](Json& j) { j["tie_word_embeddings"] = false; }); },
     {"lm_head.weight", "missing"}},
    {"other_dtype",
     "llama-32-4",
     kWeights,
     [](const Copy& c) {
       std::string bytes = c.read(kWeights);
       for (size_t at = bytes.find("\"F32\""); at != std::string::npos; at = bytes.find("\"F32\"", at + 1))
         bytes.replace(at, 5, "\"I32\"");
       c.write(kWeights, bytes);
     },
     {"dtype I32", "F32, F16 or BF16"}},
    {"index_torn", "llama-9-3-tied", kIndex, [](const Copy& c) { c.write(kIndex, "{"); }, {"not JSON"}},
    {"index_no_map",
     "llama-9-3-tied",
     kIndex,
     [](const Copy& c) { c.write(kIndex, "{}"); },
     {"weight_map", "none"}},
    {"index_number",
     "llama-9-3-tied",
     kIndex,
     [](const Copy& c) { c.edit(kIndex, [](Json& j) { j["weight_map"]["model.norm.weight"] = 4; }); },
     {"weight_map.model.norm.weight", "the number 4"}},
    {"index_leaves_folder",
     "llama-9-3-tied",
     kIndex,
     [](const Copy& c) {
       c.edit(kIndex, [](Json& j) { j["weight_map"]["model.norm.weight"] = "../model.safetensors"; });
     },
     {"weight_map.model.norm.weight", "same folder"}},
    {"index_wrong_file",
     "llama-9-3-tied",
     kIndex,
     [](const Copy& c) {
       c.edit(kIndex, [](Json& j) {
         j["weight_map"]["model.norm.weight"] = j["weight_map"]["model.embed_tokens.weight"];
       });
     },
     {"weight_map.model.norm.weight", "holds this tensor"}},
    {"index_lacks_tensor",
     "llama-9-3-tied",
     kIndex,
     [](const Copy& c) { c.edit(kIndex, [](Json& j) { j["weight_map"].erase("model.norm.weight"); }); },
     {"model.norm.weight", "missing"}},
    {"shard_absent",
     "llama-9-3-tied",
     "model-00002-of-00004.safetensors",
     [](const Copy& c) { c.remove("model-00002-of-00004.safetensors"); },
     {}},
};

std::string broken_name(const ::testing::TestParamInfo<Broken>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Config, BrokenCheckpoint, ::testing::ValuesIn(kConfigs), broken_name);
INSTANTIATE_TEST_SUITE_P(Tokenizer, BrokenCheckpoint, ::testing::ValuesIn(kTokenizers), broken_name);
INSTANTIATE_TEST_SUITE_P(Files, BrokenCheckpoint, ::testing::ValuesIn(kFiles), broken_name);

}  // namespace
}  // namespace kvfold::testing
