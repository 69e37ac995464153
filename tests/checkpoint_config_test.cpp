// config.json and generation_config.json: what is read of each kind of model, defaults, and the one line by
// which others are refused.
#include "loaders/checkpoint_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

using Json = nlohmann::ordered_json;

// Nothing but what has no default.
Json llama(const Json& changes = {}) {
  Json out = {{"model_type", "llama"},   {"num_hidden_layers", 2},  {"hidden_size", 64},
              {"intermediate_size", 48}, {"vocab_size", 32},        {"max_position_embeddings", 256},
              {"rms_norm_eps", 1e-6},    {"num_attention_heads", 8}};
  if (!changes.empty()) out.update(changes);
  return out;
}
// The classes of the others take another number for key-value heads than that of heads.
Json of_type(const char* type, const Json& changes = {}) {
  Json out = llama({{"model_type", type}, {"num_key_value_heads", 2}});
  if (!changes.empty()) out.update(changes);
  return out;
}

Result<CheckpointConfig> read(const Json& config, const char* generation = nullptr) {
  const TemporaryFolder folder;
  folder.write("config.json", config.dump());
  if (generation != nullptr) folder.write("generation_config.json", generation);
  Result<CheckpointConfig> out = read_checkpoint_config(folder.file(""));
  if (out.ok()) return out;
  const std::string& message = out.status().message();
  EXPECT_TRUE(message.starts_with(folder.file("") + "/")) << message;
  return Status::error(message.substr(folder.file("").size() + 1));
}
CheckpointConfig good(const Json& config, const char* generation = nullptr) {
  Result<CheckpointConfig> out = read(config, generation);
  EXPECT_TRUE(out.ok()) << out.status().message();
  return out.ok() ? *out : CheckpointConfig();
}
void expect_refused(const Json& config, const std::string& message) {
  EXPECT_EQ(read(config).status().message(), "config.json: key '" + message) << config;
}

TEST(CheckpointConfig, DefaultsOfLlama) {
  const CheckpointConfig config = good(llama());
  EXPECT_EQ(config.model.architecture, "llama");
  EXPECT_EQ(config.model.kv_heads, 8);
  EXPECT_EQ(config.model.head_dim, 8);
  EXPECT_EQ(config.model.rotary_dim, 8);
  EXPECT_EQ(config.model.rope_base, 10000);
  EXPECT_EQ(config.model.context_length, 256);
  EXPECT_TRUE(config.model.rope_factors.empty());
  EXPECT_FALSE(config.qkv_bias || config.output_bias || config.tied_output || config.says_whether_tied);
  EXPECT_EQ(config.bos, -1);
  EXPECT_TRUE(config.end_tokens.empty());
}

TEST(CheckpointConfig, HeadsByTheirOwnSize) {
  EXPECT_EQ(good(llama({{"head_dim", 12}})).model.head_dim, 12);
  EXPECT_EQ(good(llama({{"head_dim", 12}, {"hidden_size", 63}})).model.head_dim, 12);
  EXPECT_EQ(good(of_type("qwen3", {{"hidden_size", 63}})).model.head_dim, 128);
  EXPECT_EQ(good(of_type("qwen2")).model.head_dim, 8);
  EXPECT_EQ(good(llama({{"num_key_value_heads", 4}})).model.kv_heads, 4);
}

TEST(CheckpointConfig, BiasesByType) {
  const auto text = [](const Json& config) {
    const CheckpointConfig c = good(config);
    return std::string(c.qkv_bias ? "qkv " : "") + (c.output_bias ? "output" : "");
  };
  const Json biased = {{"attention_bias", true}};
  EXPECT_EQ(text(llama(biased)), "qkv output");
  EXPECT_EQ(text(of_type("qwen3", biased)), "qkv output");
  EXPECT_EQ(text(of_type("qwen3")), "");
  EXPECT_EQ(text(of_type("mistral", biased)), "");
  EXPECT_EQ(text(of_type("qwen2")), "qkv ");
  EXPECT_EQ(text(of_type("qwen2", biased)), "qkv ");
}

TEST(CheckpointConfig, TiedOrNotOrUnsaid) {
  EXPECT_TRUE(good(llama({{"tie_word_embeddings", true}})).tied_output);
  EXPECT_FALSE(good(llama({{"tie_word_embeddings", false}})).tied_output);
  EXPECT_TRUE(good(llama({{"tie_word_embeddings", false}})).says_whether_tied);
}

// A window counts where the class looks at it: never, always, or with use_sliding_window.
TEST(CheckpointConfig, Windows) {
  const auto window = [](const Json& config) { return good(config).model.attention_window; };
  const Json used = {{"sliding_window", 100}, {"use_sliding_window", true}};
  EXPECT_EQ(window(llama(used)), 0);
  EXPECT_EQ(window(of_type("mistral", {{"sliding_window", 100}})), 100);
  EXPECT_EQ(window(of_type("mistral", {{"sliding_window", nullptr}})), 0);
  for (const char* type : {"qwen2", "qwen3"}) {
    EXPECT_EQ(window(of_type(type, {{"sliding_window", 100}})), 0);
    EXPECT_EQ(window(of_type(type, used)), 100);
    EXPECT_EQ(window(of_type(type, {{"use_sliding_window", true}})), 0);
  }
  EXPECT_EQ(good(of_type("mistral", {{"sliding_window", 100}})).model.context_length, 256);
}

const Json kLlama3 = {{"rope_type", "llama3"}, {"rope_theta", 500000},
                      {"factor", 8},           {"low_freq_factor", 1},
                      {"high_freq_factor", 4}, {"original_max_position_embeddings", 16}};
Json llama3(const char* key, const Json& value) {
  Json out = kLlama3;
  out[key] = value;
  return out;
}

TEST(CheckpointConfig, RopeOfBothReleases) {
  const auto base = [](const Json& config) { return good(config).model.rope_base; };
  EXPECT_EQ(base(llama({{"rope_theta", 5e5}})), 5e5F);
  EXPECT_EQ(base(llama({{"rope_theta", 5e5}, {"rope_scaling", nullptr}})), 5e5F);
  EXPECT_EQ(base(llama({{"rope_parameters", {{"rope_theta", 1e6}}}})), 1e6F);
  EXPECT_EQ(base(llama({{"rope_parameters", {{"rope_theta", 1e6}, {"rope_type", "default"}}}})), 1e6F);
  EXPECT_EQ(base(llama({{"rope_theta", 5e5}, {"rope_scaling", {{"type", "default"}}}})), 5e5F);
  EXPECT_EQ(base(llama({{"rope_theta", 5e5}, {"rope_parameters", {{"partial_rotary_factor", 1.0}}}})), 5e5F);
}

// As in the library, which takes an empty object for none.
TEST(CheckpointConfig, OfBothReleasesAtOnceTheOlderCounts) {
  const Json both = {
      {"rope_theta", 5e5}, {"rope_scaling", kLlama3}, {"rope_parameters", {{"rope_theta", 1e6}}}};
  EXPECT_EQ(good(llama(both)).model.rope_factors.size(), 4U);
  Json empty = both;
  empty["rope_scaling"] = Json::object();
  EXPECT_TRUE(good(llama(empty)).model.rope_factors.empty());
  EXPECT_EQ(good(llama(empty)).model.rope_base, 1e6F);
}

// Pairs of wavelengths 2 pi, about 167, 4443 and 118,000 by 16 / 4 and 16 / 1: the first lies between them.
TEST(CheckpointConfig, Llama3sScaling) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const std::vector<float> factors = good(llama({{key, kLlama3}})).model.rope_factors;
    ASSERT_EQ(factors.size(), 4U);
    const double smooth = (16 / (2 * M_PI) - 1) / (4 - 1);
    EXPECT_FLOAT_EQ(factors[0], static_cast<float>(1 / ((1 - smooth) / 8 + smooth)));
    for (int i = 1; i < 4; ++i) EXPECT_EQ(factors[i], 8);
  }
  EXPECT_EQ(
      good(llama({{"rope_scaling", llama3("original_max_position_embeddings", 100)}})).model.rope_factors[0],
      1);
}

TEST(CheckpointConfig, RopeThatIsRefused) {
  const auto refused = [](const Json& rope, const std::string& message) {
    expect_refused(llama({{"rope_scaling", rope}}), "rope_scaling" + message);
  };
  refused({{"full_attention", kLlama3}},
          ".full_attention': found an object, expected one RoPE for all layers");
  refused("yarn", "': found the string 'yarn', expected an object");
  refused({{"type", "linear"}, {"factor", 2}},
          ".type': found the string 'linear', expected llama3 or default");
  refused({{"rope_type", 5}}, ".rope_type': found the number 5, expected a string");
  refused({{"factor", 2}}, ".rope_type': found none, expected llama3 or default");
  refused({{"rope_theta", -1}}, ".rope_theta': found -1, expected a finite number above 0");
  refused({{"partial_rotary_factor", 0.5}}, ".partial_rotary_factor': found 0.5, expected 1");
  refused({{"partial_rotary_factor", 0}},
          ".partial_rotary_factor': found 0, expected a finite number above 0");
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    refused(llama3(key, nullptr), std::string(".") + key + "': found none, expected a number");
    refused(llama3(key, "8"), std::string(".") + key + "': found the string '8', expected a number");
    refused(llama3(key, 1e39), std::string(".") + key + "': found 1e+39, expected a finite number above 0");
  }
  refused(llama3("factor", 0.5), ".factor': found 0.5, expected at least 1");
  refused(llama3("high_freq_factor", 1),
          ".high_freq_factor': found 1, expected more than low_freq_factor, 1");
  expect_refused(llama({{"rope_theta", "1e4"}}), "rope_theta': found the string '1e4', expected a number");
  expect_refused(llama({{"rope_theta", 1e39}}), "rope_theta': found 1e+39, expected a finite number above 0");
  expect_refused(llama({{"partial_rotary_factor", 0.5}}), "partial_rotary_factor': found 0.5, expected 1");
}

TEST(CheckpointConfig, SizesThatAreRefused) {
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size",
                          "max_position_embeddings", "num_attention_heads"}) {
    expect_refused(llama({{key, nullptr}}), std::string(key) + "': found none, expected an integer");
    expect_refused(llama({{key, 1.5}}), std::string(key) + "': found the number 1.5, expected an integer");
  }
  expect_refused(llama({{"rms_norm_eps", nullptr}}), "rms_norm_eps': found none, expected a number");
  expect_refused(llama({{"max_position_embeddings", 0}}),
                 "max_position_embeddings': found 0, expected 1 to 1073741824");
  for (const char* type : {"mistral", "qwen2", "qwen3"})
    expect_refused(of_type(type, {{"num_key_value_heads", nullptr}}),
                   "num_key_value_heads': found none, expected an integer");
  expect_refused(llama({{"num_key_value_heads", 3}}),
                 "num_key_value_heads': found 3, expected a divisor of the 8 heads");
  expect_refused(llama({{"hidden_size", 63}}),
                 "num_attention_heads': found 8, expected a divisor of hidden_size 63");
  expect_refused(llama({{"head_dim", 0}}), "head_dim': found 0, expected 1 to 65536");
  expect_refused(llama({{"head_dim", 9}}), "head_dim': found 9, expected an even number");
  expect_refused(llama({{"head_dim", 65536}, {"num_attention_heads", 65536}}),
                 "num_attention_heads': found 65536 heads of 65536, expected a product up to 16777216");
  expect_refused(of_type("mistral", {{"sliding_window", 0}}),
                 "sliding_window': found 0, expected 1 to 1073741824");
}

TEST(CheckpointConfig, KindsThatAreRefused) {
  const auto flag = [](const char* key) {
    expect_refused(llama({{key, 1}}), std::string(key) + "': found the number 1, expected true or false");
  };
  for (const char* key : {"mlp_bias", "use_sliding_window", "attention_bias", "tie_word_embeddings"})
    flag(key);
  expect_refused(llama({{"hidden_act", 5}}), "hidden_act': found the number 5, expected a string");
  EXPECT_TRUE(
      read(llama({{"hidden_act", "silu"}, {"mlp_bias", false}, {"quantization_config", nullptr}})).ok());
  expect_refused(llama({{"model_type", "gemma"}}),
                 "model_type': found the string 'gemma', expected one of llama, mistral, qwen2, qwen3");
}

// generation_config.json's end tokens, else config.json's.
TEST(CheckpointConfig, EndTokens) {
  const Json config = llama({{"bos_token_id", {1, 2}}, {"eos_token_id", 3}});
  const auto ends = [&](const char* generation) { return good(config, generation).end_tokens; };
  EXPECT_EQ(good(config).bos, 1);
  EXPECT_EQ(ends(nullptr), (std::vector<TokenId>{3}));
  EXPECT_EQ(ends("{}"), (std::vector<TokenId>{3}));
  EXPECT_EQ(ends(R"({"eos_token_id": null})"), (std::vector<TokenId>{3}));
  EXPECT_EQ(ends(R"({"eos_token_id": 4})"), (std::vector<TokenId>{4}));
  EXPECT_EQ(ends(R"({"eos_token_id": [4, 0]})"), (std::vector<TokenId>{4, 0}));

  const auto refused = [&](const char* generation, const std::string& message) {
    EXPECT_EQ(read(config, generation).status().message(), "generation_config.json: " + message);
  };
  const TemporaryFolder folder;
  folder.write("config.json", config.dump());
  std::filesystem::create_symlink("generation_config.json", folder.file("generation_config.json"));
  EXPECT_FALSE(read_checkpoint_config(folder.file("")).ok())
      << "a file that leads to itself is not passed over";
  refused("[]", "found an array of 0, expected an object");
  refused(R"({"eos_token_id": "a"})",
          "key 'eos_token_id': found the string 'a', expected token ids, 0 to 31");
  refused(R"({"eos_token_id": [4, 32]})",
          "key 'eos_token_id': found the number 32, expected token ids, 0 to 31");
  expect_refused(llama({{"eos_token_id", -1}}),
                 "eos_token_id': found the number -1, expected token ids, 0 to 31");
  expect_refused(llama({{"bos_token_id", true}}), "bos_token_id': found true, expected token ids, 0 to 31");
}

}  // namespace
}  // namespace kvfold::testing
