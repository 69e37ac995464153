#include "loaders/gguf_model.h"

#include <fmt/core.h>

#include <cmath>
#include <unordered_set>

#include "engine/printable.h"
#include "engine/text_hash.h"
#include "kernels/formats/formats.h"
#include "loaders/architectures.h"
#include "loaders/fingerprint.h"
#include "loaders/gguf.h"
#include "loaders/limits.h"

namespace kvfold {
namespace {

class ModelReader {
 public:
  explicit ModelReader(GgufFile file)
      : parsed_(std::make_shared<const GgufFile>(std::move(file))), file_(*parsed_) {}

  Result<ModelSource> read() {
    out_.path = file_.path();
    out_.storage = file_.file();
    out_.release = [file = file_.file()](const MatrixView& view) {
      const FormatInfo& format = format_info(view.type);
      const int64_t bytes = view.rows * (view.columns / format.block_elements) * format.block_bytes;
      file->release({view.data, static_cast<size_t>(bytes)});
    };
    out_.unchanged = [file = file_.file()] { return file->unchanged(); };
    out_.name_of = [parsed = parsed_](const MatrixView& view) {
      return std::string(parsed->name_of(view.data));
    };
    KVFOLD_RETURN_IF_ERROR(read_config());
    KVFOLD_RETURN_IF_ERROR(read_rope());
    KVFOLD_RETURN_IF_ERROR(read_vocabulary());
    KVFOLD_RETURN_IF_ERROR(read_tensors());
    out_.fingerprint = fingerprint(out_);
    return std::move(out_);
  }

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_->name, name); }

  Status wrong(std::string_view key, const std::string& found, const std::string& expected) const {
    return Status::error(
        fmt::format("{}: key '{}': found {}, expected {}", file_.path(), key, found, expected));
  }

  // The integer of a key, within [1, most]; `fallback` where the key is missing, if that is above 0.
  Status read_size(const std::string& key, int64_t most, int& out, int64_t fallback = 0) {
    int64_t value = fallback;
    if (fallback <= 0 || file_.has(key)) {
      KVFOLD_ASSIGN_OR_RETURN(value, file_.integer(key));
    }
    if (value < 1 || value > most) return wrong(key, fmt::format("{}", value), fmt::format("1 to {}", most));
    out = static_cast<int>(value);
    return {};
  }

  Status read_positive(const std::string& key, float& out, double fallback = 0) {
    double value = fallback;
    if (fallback <= 0 || file_.has(key)) {
      KVFOLD_ASSIGN_OR_RETURN(value, file_.number(key));
    }
    out = static_cast<float>(value);
    if (!(out > 0) || !std::isfinite(out))
      return wrong(key, fmt::format("{}", value), "a finite number above 0");
    return {};
  }

  Status read_config() {
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view name, file_.string("general.architecture"));
    architecture_ = find_architecture(name);
    if (architecture_ == nullptr) {
      std::string known;
      for (const Architecture& a : architectures())
        known += (known.empty() ? "" : ", ") + std::string(a.name);
      return wrong("general.architecture", fmt::format("'{}'", printable(name)), "one of " + known);
    }
    ModelConfig& c = out_.config;
    c.architecture = architecture_->name;
    if (file_.has("general.name")) {
      KVFOLD_ASSIGN_OR_RETURN(c.name, file_.string("general.name"));
    }
    KVFOLD_RETURN_IF_ERROR(read_size(key("block_count"), kMostLayers, c.layers));
    KVFOLD_RETURN_IF_ERROR(read_size(key("embedding_length"), kMostWidth, c.model_dim));
    KVFOLD_RETURN_IF_ERROR(read_size(key("feed_forward_length"), kMostWidth, c.ffn_dim));
    KVFOLD_RETURN_IF_ERROR(read_size(key("context_length"), kMostContext, c.context_length));
    KVFOLD_RETURN_IF_ERROR(read_positive(key("attention.layer_norm_rms_epsilon"), c.norm_epsilon));
    KVFOLD_RETURN_IF_ERROR(read_window());
    return read_heads();
  }

  // 0 stands for none.
  Status read_window() {
    const std::string window = key("attention.sliding_window");
    if (!file_.has(window)) return {};
    KVFOLD_ASSIGN_OR_RETURN(const int64_t rows, file_.integer(window));
    if (rows < 0 || rows > kMostContext)
      return wrong(window, fmt::format("{}", rows), fmt::format("0 to {}", kMostContext));
    out_.config.attention_window = static_cast<int>(rows);
    return {};
  }

  Status read_heads() {
    ModelConfig& c = out_.config;
    KVFOLD_RETURN_IF_ERROR(read_size(key("attention.head_count"), kMostHeads, c.heads));
    KVFOLD_RETURN_IF_ERROR(read_size(key("attention.head_count_kv"), kMostHeads, c.kv_heads, c.heads));
    if (c.heads % c.kv_heads != 0)
      return wrong(key("attention.head_count_kv"), fmt::format("{}", c.kv_heads),
                   fmt::format("a divisor of the {} heads", c.heads));
    if (!file_.has(key("attention.key_length")) && c.model_dim % c.heads != 0)
      return wrong(key("attention.head_count"), fmt::format("{}", c.heads),
                   fmt::format("a divisor of the embedding length {}", c.model_dim));
    KVFOLD_RETURN_IF_ERROR(
        read_size(key("attention.key_length"), kMostHeads, c.head_dim, c.model_dim / c.heads));
    int value_dim = 0;
    KVFOLD_RETURN_IF_ERROR(read_size(key("attention.value_length"), kMostHeads, value_dim, c.head_dim));
    if (value_dim != c.head_dim)
      return wrong(key("attention.value_length"), fmt::format("{}", value_dim),
                   fmt::format("{}, the length of keys", c.head_dim));
    if (static_cast<int64_t>(c.heads) * c.head_dim > kMostWidth)
      return wrong(key("attention.head_count"), fmt::format("{} heads of {}", c.heads, c.head_dim),
                   fmt::format("a product up to {}", kMostWidth));
    return {};
  }

  Status read_rope() {
    ModelConfig& c = out_.config;
    c.rope_pairing = architecture_->gguf_pairing;
    KVFOLD_RETURN_IF_ERROR(read_positive(key("rope.freq_base"), c.rope_base, 10000));
    KVFOLD_RETURN_IF_ERROR(read_size(key("rope.dimension_count"), c.head_dim, c.rotary_dim, c.head_dim));
    if (c.rotary_dim % 2 != 0)
      return wrong(key("rope.dimension_count"), fmt::format("{}", c.rotary_dim), "an even number");
    KVFOLD_RETURN_IF_ERROR(refuse_scaling());
    if (const GgufTensor* factors = file_.tensor("rope_freqs.weight")) {
      KVFOLD_ASSIGN_OR_RETURN(const MatrixView view, vector("rope_freqs.weight", c.rotary_dim / 2));
      c.rope_factors.resize(static_cast<size_t>(view.columns));
      format_info(factors->view.type).decode(view.data, c.rope_factors.data(), c.rope_factors.size());
      for (const float factor : c.rope_factors)
        if (!(factor > 0) || !std::isfinite(factor))
          return Status::error(
              fmt::format("{}: tensor 'rope_freqs.weight': found {}, expected finite numbers above 0",
                          file_.path(), factor));
    }
    return {};
  }

  // A factor whose type is not named scales linearly, as llama.cpp has it, and older files have another key
  // for it.
  Status refuse_scaling() {
    const std::string type_key = key("rope.scaling.type");
    const bool old = !file_.has(key("rope.scaling.factor")) && file_.has(key("rope.scale_linear"));
    const std::string factor_key = key(old ? "rope.scale_linear" : "rope.scaling.factor");
    std::string_view type = "linear";
    if (file_.has(type_key)) {
      KVFOLD_ASSIGN_OR_RETURN(type, file_.string(type_key));
    }
    if (type == "none") return {};
    float factor = 1;
    KVFOLD_RETURN_IF_ERROR(read_positive(factor_key, factor, 1));
    if (type == "linear" && factor == 1) return {};
    return wrong(file_.has(type_key) ? type_key : factor_key,
                 fmt::format("'{}' with factor {}", printable(type), factor),
                 "none (Llama 3's scaling comes as the tensor rope_freqs.weight)");
  }

  // An optional token id; -1 where the key is missing.
  Status read_token(const std::string& key, TokenId& out) {
    if (!file_.has(key)) return {};
    KVFOLD_ASSIGN_OR_RETURN(const int64_t id, file_.integer(key));
    const auto size = static_cast<int64_t>(out_.vocabulary.tokens.size());
    if (id < 0 || id >= size)
      return wrong(key, fmt::format("{}", id), fmt::format("a token id, 0 to {}", size - 1));
    out = static_cast<TokenId>(id);
    return {};
  }

  Status read_flag(const std::string& key, bool& out) {
    if (!file_.has(key)) return {};
    KVFOLD_ASSIGN_OR_RETURN(out, file_.boolean(key));
    return {};
  }

  Status read_vocabulary() {
    VocabularySource& v = out_.vocabulary;
    KVFOLD_ASSIGN_OR_RETURN(v.model, file_.string("tokenizer.ggml.model"));
    KVFOLD_ASSIGN_OR_RETURN(v.tokens, file_.strings("tokenizer.ggml.tokens"));
    if (v.tokens.empty() || v.tokens.size() > static_cast<size_t>(kMostWidth))
      return wrong("tokenizer.ggml.tokens", fmt::format("{} tokens", v.tokens.size()),
                   fmt::format("1 to {}", kMostWidth));
    out_.config.vocab_size = static_cast<int>(v.tokens.size());
    if (file_.has("tokenizer.ggml.pre")) {
      KVFOLD_ASSIGN_OR_RETURN(v.pre_tokenizer, file_.string("tokenizer.ggml.pre"));
    }
    if (file_.has("tokenizer.ggml.merges")) {
      KVFOLD_ASSIGN_OR_RETURN(v.merges, file_.strings("tokenizer.ggml.merges"));
    }
    if (file_.has("tokenizer.chat_template")) {
      KVFOLD_ASSIGN_OR_RETURN(v.chat_template, file_.string("tokenizer.chat_template"));
    }
    KVFOLD_RETURN_IF_ERROR(read_token_attributes());
    if (v.model == "llama") KVFOLD_RETURN_IF_ERROR(read_spm());
    KVFOLD_RETURN_IF_ERROR(read_token("tokenizer.ggml.bos_token_id", v.bos));
    KVFOLD_RETURN_IF_ERROR(read_token("tokenizer.ggml.eos_token_id", v.eos));
    KVFOLD_RETURN_IF_ERROR(read_token("tokenizer.ggml.unknown_token_id", v.unknown));
    KVFOLD_RETURN_IF_ERROR(read_token("tokenizer.ggml.padding_token_id", v.padding));
    for (const char* ends_turn : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
      TokenId id = -1;
      KVFOLD_RETURN_IF_ERROR(read_token(ends_turn, id));
      if (id >= 0) v.end_tokens.push_back(id);
    }
    // Files of Llama 3 leave it to the reader, as llama.cpp does it for this pre-tokenizer.
    if (v.model == "gpt2" && v.pre_tokenizer == "llama-bpe") v.add_bos = v.bos >= 0;
    KVFOLD_RETURN_IF_ERROR(read_flag("tokenizer.ggml.add_bos_token", v.add_bos));
    KVFOLD_RETURN_IF_ERROR(read_flag("tokenizer.ggml.add_eos_token", v.add_eos));
    if (v.add_bos && v.bos < 0)
      return wrong("tokenizer.ggml.add_bos_token", "true", "false, as there is no bos_token_id");
    return {};
  }

  // What SPM vocabularies have where the file does not say, as in Llama's own.
  Status read_spm() {
    VocabularySource& v = out_.vocabulary;
    const auto size = static_cast<TokenId>(v.tokens.size());
    v.unknown = 0;
    v.bos = size > 1 ? 1 : -1;
    v.eos = size > 2 ? 2 : -1;
    v.add_bos = v.bos >= 0;
    bool prefix = true;
    KVFOLD_RETURN_IF_ERROR(read_flag("tokenizer.ggml.add_space_prefix", prefix));
    v.space_prefix = prefix ? SpacePrefix::kSegment : SpacePrefix::kNone;
    return {};
  }

  Status read_token_attributes() {
    VocabularySource& v = out_.vocabulary;
    const std::string per_token = fmt::format("one for each of the {} tokens", v.tokens.size());
    if (file_.has("tokenizer.ggml.token_type")) {
      KVFOLD_ASSIGN_OR_RETURN(const std::vector<int32_t> types, file_.integers("tokenizer.ggml.token_type"));
      if (types.size() != v.tokens.size())
        return wrong("tokenizer.ggml.token_type", fmt::format("{} values", types.size()), per_token);
      for (size_t i = 0; i < types.size(); ++i) {
        if (types[i] < 0 || types[i] > static_cast<int32_t>(TokenType::kByte))
          return wrong("tokenizer.ggml.token_type", fmt::format("{} for token {}", types[i], i), "0 to 6");
        v.types.push_back(types[i] == 0 ? TokenType::kNormal : static_cast<TokenType>(types[i]));
      }
    }
    if (file_.has("tokenizer.ggml.scores")) {
      KVFOLD_ASSIGN_OR_RETURN(v.scores, file_.floats("tokenizer.ggml.scores"));
      if (v.scores.size() != v.tokens.size())
        return wrong("tokenizer.ggml.scores", fmt::format("{} values", v.scores.size()), per_token);
    }
    return {};
  }

  Result<MatrixView> matrix(const std::string& name, int64_t rows, int64_t columns) {
    const GgufTensor* tensor = file_.tensor(name);
    taken_.insert(name);
    if (tensor == nullptr)
      return Status::error(fmt::format("{}: tensor '{}' is missing", file_.path(), name));
    const bool flat = tensor->shape.size() == 2 || (rows == 1 && tensor->shape.size() == 1);
    if (!flat || tensor->view.rows != rows || tensor->view.columns != columns) {
      std::string found;
      for (const int64_t size : tensor->shape) found += (found.empty() ? "" : ", ") + std::to_string(size);
      return Status::error(fmt::format("{}: tensor '{}': found shape [{}], expected [{}{}]", file_.path(),
                                       name, found, columns, rows == 1 ? "" : fmt::format(", {}", rows)));
    }
    return tensor->view;
  }

  // A vector is stored unquantised.
  Result<MatrixView> vector(const std::string& name, int64_t size) {
    KVFOLD_ASSIGN_OR_RETURN(const MatrixView view, matrix(name, 1, size));
    if (format_info(view.type).group != nullptr)
      return Status::error(fmt::format("{}: tensor '{}': found type {}, expected f32, f16 or bf16",
                                       file_.path(), name, format_info(view.type).name));
    return view;
  }

  Status read_tensors() {
    const ModelConfig& c = out_.config;
    KVFOLD_ASSIGN_OR_RETURN(out_.embedding, matrix("token_embd.weight", c.vocab_size, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(out_.output_norm, vector("output_norm.weight", c.model_dim));
    out_.tied_output = file_.tensor("output.weight") == nullptr;
    out_.output = out_.embedding;
    if (!out_.tied_output) {
      KVFOLD_ASSIGN_OR_RETURN(out_.output, matrix("output.weight", c.vocab_size, c.model_dim));
    }
    for (int i = 0; i < c.layers; ++i) KVFOLD_RETURN_IF_ERROR(read_layer(i));
    return refuse_other_tensors();
  }

  // What else a file holds would change the result: biases that this architecture does not have here,
  // experts, layers beyond those that are counted.
  Status refuse_other_tensors() const {
    for (const std::string_view name : file_.tensor_names())
      if (!taken_.contains(std::string(name)))
        return Status::error(
            fmt::format("{}: tensor '{}': found one, expected none of that name in a {} model of {} layers",
                        file_.path(), printable(name), architecture_->name, out_.config.layers));
    return {};
  }

  Status read_layer(int index) {
    const ModelConfig& c = out_.config;
    const int64_t q_dim = static_cast<int64_t>(c.heads) * c.head_dim;
    const int64_t kv_dim = static_cast<int64_t>(c.kv_heads) * c.head_dim;
    const auto name = [&](std::string_view role) { return fmt::format("blk.{}.{}", index, role); };
    LayerTensors l;
    KVFOLD_ASSIGN_OR_RETURN(l.attention_norm, vector(name("attn_norm.weight"), c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wq, matrix(name("attn_q.weight"), q_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wk, matrix(name("attn_k.weight"), kv_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wv, matrix(name("attn_v.weight"), kv_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wo, matrix(name("attn_output.weight"), c.model_dim, q_dim));
    // Llama's biases are there or not, as attention_bias was when the model was made.
    if (architecture_->qkv_bias || file_.tensor(name("attn_q.bias")) != nullptr) {
      KVFOLD_ASSIGN_OR_RETURN(l.bq, vector(name("attn_q.bias"), q_dim));
      KVFOLD_ASSIGN_OR_RETURN(l.bk, vector(name("attn_k.bias"), kv_dim));
      KVFOLD_ASSIGN_OR_RETURN(l.bv, vector(name("attn_v.bias"), kv_dim));
    }
    if (file_.tensor(name("attn_output.bias")) != nullptr) {
      KVFOLD_ASSIGN_OR_RETURN(l.bo, vector(name("attn_output.bias"), c.model_dim));
    }
    if (architecture_->qk_norm) {
      KVFOLD_ASSIGN_OR_RETURN(l.q_norm, vector(name("attn_q_norm.weight"), c.head_dim));
      KVFOLD_ASSIGN_OR_RETURN(l.k_norm, vector(name("attn_k_norm.weight"), c.head_dim));
    }
    KVFOLD_ASSIGN_OR_RETURN(l.ffn_norm, vector(name("ffn_norm.weight"), c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.gate, matrix(name("ffn_gate.weight"), c.ffn_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.up, matrix(name("ffn_up.weight"), c.ffn_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.down, matrix(name("ffn_down.weight"), c.model_dim, c.ffn_dim));
    out_.layers.push_back(l);
    return {};
  }

  std::shared_ptr<const GgufFile> parsed_;
  const GgufFile& file_;
  const Architecture* architecture_ = nullptr;
  std::unordered_set<std::string, TextHash> taken_;  // names of tensors that were asked for
  ModelSource out_;
};

}  // namespace

Result<ModelSource> load_gguf_model(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  return load_gguf_model(std::move(file));
}

Result<ModelSource> load_gguf_model(std::shared_ptr<const MappedFile> file) {
  KVFOLD_ASSIGN_OR_RETURN(GgufFile parsed, GgufFile::parse(std::move(file)));
  return ModelReader(std::move(parsed)).read();
}

}  // namespace kvfold
