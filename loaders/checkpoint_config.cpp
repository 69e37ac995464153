#include "loaders/checkpoint_config.h"

#include <fmt/core.h>

#include <cmath>
#include <numbers>

#include "engine/file.h"
#include "loaders/json.h"
#include "loaders/limits.h"

namespace kvfold {
namespace {

enum class Window { kNever, kAlways, kWhenUsed };  // the last: with use_sliding_window

// What a model_type means. Head counts that may be left out are those whose default follows from others.
struct ModelType {
  std::string_view name;
  std::string_view architecture;
  bool always_qkv_bias;  // q, k and v have biases, and the output projection has none
  bool needs_kv_heads;   // the class's default for num_key_value_heads is a number of its own
  int head_dim;          // where it is not given; 0: hidden_size / num_attention_heads
  Window window;         // when sliding_window counts
};

constexpr ModelType kModelTypes[] = {
    {"llama", "llama", false, false, 0, Window::kNever},
    {"mistral", "llama", false, true, 0, Window::kAlways},
    {"qwen2", "qwen2", true, true, 0, Window::kWhenUsed},
    {"qwen3", "qwen3", false, true, 128, Window::kWhenUsed},
};

// How many of the pairs that RoPE turns are slowed down, and by how much: Llama 3's scaling, as transformers
// computes it (modeling_rope_utils, "llama3"). Waves that are long against the original context turn slower
// by `factor`, short ones as before, and between them the frequency is interpolated.
struct Llama3Scaling {
  double factor, low_frequency_factor, high_frequency_factor, original_context;

  // What the angle of a pair is divided by. `frequency` in radians a position.
  double divisor(double frequency) const {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < original_context / high_frequency_factor) return 1;
    if (wavelength > original_context / low_frequency_factor) return factor;
    const double smooth = (original_context / wavelength - low_frequency_factor) /
                          (high_frequency_factor - low_frequency_factor);
    return 1 / ((1 - smooth) / factor + smooth);
  }
};

class ConfigReader {
 public:
  explicit ConfigReader(JsonObject json) : json_(std::move(json)) {}

  Result<CheckpointConfig> read() {
    KVFOLD_RETURN_IF_ERROR(read_type());
    KVFOLD_RETURN_IF_ERROR(refuse_unsupported());
    KVFOLD_RETURN_IF_ERROR(read_sizes());
    KVFOLD_RETURN_IF_ERROR(read_heads());
    KVFOLD_RETURN_IF_ERROR(read_rope());
    KVFOLD_RETURN_IF_ERROR(read_window());
    KVFOLD_RETURN_IF_ERROR(read_flags());
    return std::move(out_);
  }

 private:
  Status read_type() {
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view name, json_.string("model_type"));
    std::string known;
    for (const ModelType& type : kModelTypes) {
      if (type.name == name) type_ = &type;
      known += (known.empty() ? "" : ", ") + std::string(type.name);
    }
    if (type_ == nullptr) return json_.wrong("model_type", json_.value()["model_type"], "one of " + known);
    out_.architecture = find_architecture(type_->architecture);
    KVFOLD_CHECK(out_.architecture != nullptr);
    out_.model.architecture = type_->architecture;
    return {};
  }

  Status refuse_unsupported() const {
    if (json_.has("quantization_config"))
      return json_.wrong("quantization_config", "one", "weights in F32, F16 or BF16");
    if (json_.has("hidden_act")) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view activation, json_.string("hidden_act"));
      if (activation != "silu") return json_.wrong("hidden_act", json_.value()["hidden_act"], "silu");
    }
    KVFOLD_ASSIGN_OR_RETURN(const bool mlp_bias, json_.flag("mlp_bias", false));
    if (mlp_bias) return json_.wrong("mlp_bias", "true", "false");
    return {};
  }

  // The integer of a key, within [1, most]; `fallback` where the key is missing, if that is above 0.
  Status read_size(std::string_view key, int64_t most, int& out, int64_t fallback = 0) const {
    int64_t value = fallback;
    if (fallback <= 0 || json_.has(key)) {
      KVFOLD_ASSIGN_OR_RETURN(value, json_.integer(key));
    }
    if (value < 1 || value > most)
      return json_.wrong(key, fmt::format("{}", value), fmt::format("1 to {}", most));
    out = static_cast<int>(value);
    return {};
  }

  static Status read_positive(const JsonObject& json, std::string_view key, double& out,
                              double fallback = 0) {
    out = fallback;
    if (fallback <= 0 || json.has(key)) {
      KVFOLD_ASSIGN_OR_RETURN(out, json.number(key));
    }
    const auto stored = static_cast<float>(out);
    if (!(stored > 0) || !std::isfinite(stored))
      return json.wrong(key, fmt::format("{}", out), "a finite number above 0");
    return {};
  }

  Status read_sizes() {
    ModelConfig& c = out_.model;
    double epsilon = 0;
    KVFOLD_RETURN_IF_ERROR(read_size("num_hidden_layers", kMostLayers, c.layers));
    KVFOLD_RETURN_IF_ERROR(read_size("hidden_size", kMostWidth, c.model_dim));
    KVFOLD_RETURN_IF_ERROR(read_size("intermediate_size", kMostWidth, c.ffn_dim));
    KVFOLD_RETURN_IF_ERROR(read_size("vocab_size", kMostWidth, c.vocab_size));
    KVFOLD_RETURN_IF_ERROR(read_size("max_position_embeddings", kMostContext, c.context_length));
    KVFOLD_RETURN_IF_ERROR(read_positive(json_, "rms_norm_eps", epsilon));
    c.norm_epsilon = static_cast<float>(epsilon);
    return {};
  }

  Status read_heads() {
    ModelConfig& c = out_.model;
    KVFOLD_RETURN_IF_ERROR(read_size("num_attention_heads", kMostHeads, c.heads));
    KVFOLD_RETURN_IF_ERROR(
        read_size("num_key_value_heads", kMostHeads, c.kv_heads, type_->needs_kv_heads ? 0 : c.heads));
    if (c.heads % c.kv_heads != 0)
      return json_.wrong("num_key_value_heads", fmt::format("{}", c.kv_heads),
                         fmt::format("a divisor of the {} heads", c.heads));
    const bool divided = !json_.has("head_dim") && type_->head_dim == 0;
    if (divided && c.model_dim % c.heads != 0)
      return json_.wrong("num_attention_heads", fmt::format("{}", c.heads),
                         fmt::format("a divisor of hidden_size {}", c.model_dim));
    KVFOLD_RETURN_IF_ERROR(
        read_size("head_dim", kMostHeads, c.head_dim, divided ? c.model_dim / c.heads : type_->head_dim));
    if (c.head_dim % 2 != 0) return json_.wrong("head_dim", fmt::format("{}", c.head_dim), "an even number");
    if (static_cast<int64_t>(c.heads) * c.head_dim > kMostWidth)
      return json_.wrong("num_attention_heads", fmt::format("{} heads of {}", c.heads, c.head_dim),
                         fmt::format("a product up to {}", kMostWidth));
    c.rotary_dim = c.head_dim;
    return {};
  }

  // Release 5 keeps rope_theta beside the scaling's numbers in rope_parameters; release 4 keeps it at the
  // top. Where a file has both, rope_scaling counts.
  Status read_rope() {
    ModelConfig& c = out_.model;
    c.rope_pairing = RopePairing::kHalfSplit;
    const bool scaling = json_.has("rope_scaling") && !json_.value()["rope_scaling"].empty();
    const std::string_view key = scaling ? "rope_scaling" : "rope_parameters";
    double base = 0;
    KVFOLD_RETURN_IF_ERROR(read_positive(json_, "rope_theta", base, 10000));
    KVFOLD_RETURN_IF_ERROR(refuse_partial(json_));
    if (json_.has(key)) {
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject rope, json_.object(key));
      KVFOLD_RETURN_IF_ERROR(read_positive(rope, "rope_theta", base, base));
      KVFOLD_RETURN_IF_ERROR(refuse_partial(rope));
      KVFOLD_RETURN_IF_ERROR(read_scaling(rope, base));
    }
    c.rope_base = static_cast<float>(base);
    return {};
  }

  static Status refuse_partial(const JsonObject& json) {
    constexpr std::string_view kKey = "partial_rotary_factor";
    double factor = 1;
    KVFOLD_RETURN_IF_ERROR(read_positive(json, kKey, factor, 1));
    return factor == 1 ? Status{} : json.wrong(kKey, fmt::format("{}", factor), "1");
  }

  Status read_scaling(const JsonObject& rope, double base) {
    for (const auto& [name, value] : rope.value().items())
      if (value.is_object()) return rope.wrong(name, value, "one RoPE for all layers");
    const std::string_view key = rope.has("rope_type") ? "rope_type" : "type";
    if (!rope.has(key)) {
      // rope_parameters of a model without scaling may hold rope_theta alone.
      if (rope.has("factor")) return rope.wrong("rope_type", "none", "llama3 or default");
      return {};
    }
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view type, rope.string(key));
    if (type == "default") return {};
    if (type != "llama3") return rope.wrong(key, rope.value()[std::string(key)], "llama3 or default");
    Llama3Scaling scaling{};
    KVFOLD_RETURN_IF_ERROR(read_positive(rope, "factor", scaling.factor));
    KVFOLD_RETURN_IF_ERROR(read_positive(rope, "low_freq_factor", scaling.low_frequency_factor));
    KVFOLD_RETURN_IF_ERROR(read_positive(rope, "high_freq_factor", scaling.high_frequency_factor));
    KVFOLD_RETURN_IF_ERROR(read_positive(rope, "original_max_position_embeddings", scaling.original_context));
    if (scaling.factor < 1) return rope.wrong("factor", fmt::format("{}", scaling.factor), "at least 1");
    if (scaling.high_frequency_factor <= scaling.low_frequency_factor)
      return rope.wrong("high_freq_factor", fmt::format("{}", scaling.high_frequency_factor),
                        fmt::format("more than low_freq_factor, {}", scaling.low_frequency_factor));
    ModelConfig& c = out_.model;
    for (int i = 0; i < c.rotary_dim / 2; ++i)
      c.rope_factors.push_back(static_cast<float>(scaling.divisor(std::pow(base, -2.0 * i / c.rotary_dim))));
    return {};
  }

  Status read_window() {
    KVFOLD_ASSIGN_OR_RETURN(const bool used, json_.flag("use_sliding_window", false));
    const bool counts = type_->window == Window::kAlways || (type_->window == Window::kWhenUsed && used);
    if (!counts || !json_.has("sliding_window")) return {};
    return read_size("sliding_window", kMostContext, out_.model.attention_window);
  }

  Status read_flags() {
    KVFOLD_ASSIGN_OR_RETURN(const bool attention_bias, json_.flag("attention_bias", false));
    // Mistral's and Qwen 2's classes do not look at the key.
    const bool looked_at = type_->name != "mistral" && !type_->always_qkv_bias;
    out_.output_bias = attention_bias && looked_at;
    out_.qkv_bias = type_->always_qkv_bias || out_.output_bias;
    out_.says_whether_tied = json_.has("tie_word_embeddings");
    KVFOLD_ASSIGN_OR_RETURN(out_.tied_output, json_.flag("tie_word_embeddings", false));
    return {};
  }

  JsonObject json_;
  const ModelType* type_ = nullptr;
  CheckpointConfig out_;
};

// An id, or a list of them, appended to `out`; nothing where the key is missing.
Status read_ids(const JsonObject& json, const std::string& key, int vocab_size, std::vector<TokenId>& out) {
  if (!json.has(key)) return {};
  const nlohmann::json& value = json.value()[key];
  const auto add = [&](const nlohmann::json& id) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size))
      return json.wrong(key, id, fmt::format("token ids, 0 to {}", vocab_size - 1));
    out.push_back(static_cast<TokenId>(id.get<uint64_t>()));
    return Status{};
  };
  if (!value.is_array()) return add(value);
  for (const nlohmann::json& id : value) KVFOLD_RETURN_IF_ERROR(add(id));
  return {};
}

Status read_tokens(const JsonObject& config, const std::string& folder, CheckpointConfig& out) {
  std::vector<TokenId> bos;
  KVFOLD_RETURN_IF_ERROR(read_ids(config, "bos_token_id", out.model.vocab_size, bos));
  if (!bos.empty()) out.bos = bos[0];
  const std::string path = folder + "/generation_config.json";
  if (file_exists(path)) {
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject generation, JsonObject::open(path));
    KVFOLD_RETURN_IF_ERROR(read_ids(generation, "eos_token_id", out.model.vocab_size, out.end_tokens));
  }
  if (out.end_tokens.empty())
    KVFOLD_RETURN_IF_ERROR(read_ids(config, "eos_token_id", out.model.vocab_size, out.end_tokens));
  return {};
}

}  // namespace

Result<CheckpointConfig> read_checkpoint_config(const std::string& folder) {
  KVFOLD_ASSIGN_OR_RETURN(JsonObject json, JsonObject::open(folder + "/config.json"));
  KVFOLD_ASSIGN_OR_RETURN(CheckpointConfig out, ConfigReader(json).read());
  KVFOLD_RETURN_IF_ERROR(read_tokens(json, folder, out));
  return out;
}

}  // namespace kvfold
