#include "loaders/random_model.h"

#include <fmt/core.h>

#include <array>
#include <cmath>
#include <cstring>
#include <deque>

#include "engine/printable.h"
#include "engine/random.h"
#include "engine/tokenizer/bpe.h"
#include "kernels/formats/formats.h"
#include "loaders/architectures.h"
#include "loaders/gguf_save.h"

namespace kvfold {
namespace {

constexpr std::string_view kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% "
    "endif %}";
constexpr std::string_view kZephyr =
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + "
    "eos_token + '\\n' }}{% elif message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + "
    "eos_token + '\\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] "
    "+ "
    "eos_token + '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% "
    "endif %}";

// As the models' config.json files say.
constexpr std::array kShapes = {
    RandomModelShape{"tinyllama-1.1b", "llama", 22, 2048, 32, 4, 5632, 32000, 2048, 1e4F, 1e-5F, false, "",
                     0},
    RandomModelShape{"smollm-360m", "llama", 32, 960, 15, 5, 2560, 49152, 2048, 1e4F, 1e-5F, true, "smollm",
                     0},
    RandomModelShape{"qwen-0.5b", "qwen2", 24, 896, 14, 2, 4864, 151936, 32768, 1e6F, 1e-6F, true, "qwen2",
                     271},
    RandomModelShape{"smollm-135m", "llama", 30, 576, 9, 3, 1536, 49152, 2048, 1e4F, 1e-5F, true, "smollm",
                     0},
};
constexpr int kHeadDim = 64;

// The texts of a vocabulary; a deque, so that views of them stay.
struct Texts {
  std::deque<std::string> all;
  std::string_view keep(std::string text) { return all.emplace_back(std::move(text)); }
};

class Vocabulary {
 public:
  Vocabulary(const RandomModelShape& shape, Texts& texts) : shape_(shape), texts_(texts) {}

  VocabularySource make() {
    if (shape_.pre_tokenizer.empty()) {
      spm();
    } else {
      byte_level();
    }
    return std::move(out_);
  }

 private:
  void add(std::string text, TokenType type) {
    out_.tokens.push_back(texts_.keep(std::move(text)));
    out_.types.push_back(type);
  }
  size_t size() const { return static_cast<size_t>(shape_.vocab_size); }

  void spm() {
    out_.model = "llama";
    out_.chat_template = kZephyr;
    add("<unk>", TokenType::kUnknown);
    add("<s>", TokenType::kControl);
    add("</s>", TokenType::kControl);
    out_.unknown = 0;
    out_.bos = 1;
    out_.eos = out_.padding = 2;
    out_.add_bos = true;
    for (int byte = 0; byte < 256; ++byte) add(fmt::format("<0x{:02X}>", byte), TokenType::kByte);
    std::vector<std::string> letters = {"\xE2\x96\x81"};
    for (char c = '!'; c <= '~'; ++c) letters.emplace_back(1, c);
    for (const std::string& letter : letters) add(letter, TokenType::kNormal);
    words("\xE2\x96\x81", size());
    for (size_t id = 0; id < size(); ++id)
      out_.scores.push_back(out_.types[id] == TokenType::kNormal ? -static_cast<float>(id) : 0);
  }

  void byte_level() {
    out_.model = "gpt2";
    out_.pre_tokenizer = shape_.pre_tokenizer;
    out_.chat_template = kChatMl;
    for (int byte = 0; byte < 256; ++byte)
      add(std::string(byte_level_character(static_cast<uint8_t>(byte))), TokenType::kNormal);
    const size_t unused = static_cast<size_t>(shape_.unused);
    words("\xC4\xA0", size() - unused - 3);
    for (const char* control : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"})
      add(control, TokenType::kControl);
    out_.eos = static_cast<TokenId>(out_.tokens.size()) - 1;
    out_.bos = out_.padding = out_.eos - 2;
    while (out_.tokens.size() < size()) add(fmt::format("[PAD{}]", out_.tokens.size()), TokenType::kUnused);
  }

  // Fills the vocabulary up to `count` with words of small letters, each a shorter one and a letter more, and
  // their merges. A word may begin with a space.
  void words(const std::string& space, size_t count) {
    std::vector<std::string> letters = {space};
    for (char c = 'a'; c <= 'z'; ++c) letters.emplace_back(1, c);
    std::vector<std::string> shorter = letters;
    while (out_.tokens.size() < count) {
      std::vector<std::string> longer;
      for (const std::string& word : shorter)
        for (size_t i = 1; i < letters.size() && out_.tokens.size() < count; ++i) {
          longer.push_back(word + letters[i]);
          add(longer.back(), TokenType::kNormal);
          if (!shape_.pre_tokenizer.empty()) out_.merges.push_back(texts_.keep(word + ' ' + letters[i]));
        }
      shorter = std::move(longer);
    }
  }

  const RandomModelShape& shape_;
  Texts& texts_;
  VocabularySource out_;
};

// Random bytes for tensors: blocks drawn from a pool of blocks that hold gaussian values.
class Weights {
 public:
  explicit Weights(uint64_t seed) : random_(seed) {}

  std::span<const std::byte> make(const GgufEntry& entry) {
    const FormatInfo& format = format_info(entry.type);
    int64_t count = 1;
    for (const int64_t size : entry.shape) count *= size;
    const bool vector = entry.shape.size() == 1;
    const bool bias = entry.name.ends_with(".bias");
    // Values that keep the size of what passes through; logits of a few units.
    const double deviation = bias ? 0.2 : vector ? 0.1 : 1 / std::sqrt(static_cast<double>(entry.shape[0]));
    constexpr int64_t kPool = 4096;
    std::vector<float> values(static_cast<size_t>(kPool * format.block_elements));
    for (float& v : values)
      v = static_cast<float>((vector && !bias ? 1 : 0) + deviation * random_.gaussian());
    const auto size = static_cast<size_t>(format.block_bytes);
    std::vector<std::byte> pool(kPool * size);
    format.encode(values.data(), pool.data(), values.size());
    const auto blocks = static_cast<size_t>(count / format.block_elements);
    bytes_.resize(blocks * size);
    for (size_t i = 0; i < blocks; ++i)
      std::memcpy(&bytes_[i * size], &pool[random_.below(kPool) * size], size);
    return bytes_;
  }

 private:
  Random random_;
  std::vector<std::byte> bytes_;
};

// Q4_K and Q6_K need rows of whole blocks of 256.
WeightType fitting(WeightType type, int64_t columns) {
  if (columns % format_info(type).block_elements == 0) return type;
  return type == WeightType::kQ4_K ? WeightType::kQ5_0 : WeightType::kQ8_0;
}

WeightType type_of(const std::string& name, int64_t columns, const RandomModelShape& shape,
                   RandomTypes types) {
  const bool makes_logits = name == (shape.tied ? "token_embd.weight" : "output.weight");
  if (makes_logits) return fitting(WeightType::kQ6_K, columns);
  if (types == RandomTypes::kQ4_0) return WeightType::kQ4_0;
  int layer = 0;
  const bool sensitive = name.ends_with("attn_v.weight") || name.ends_with("ffn_down.weight");
  if (sensitive && std::sscanf(name.c_str(), "blk.%d.", &layer) == 1) {
    // As llama.cpp spends its bits: the first and the last eighth of the layers, and every third between.
    const int n = shape.layers;
    if (layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2)
      return fitting(WeightType::kQ6_K, columns);
  }
  return fitting(WeightType::kQ4_K, columns);
}

// The model without its weights: every view has its shape and no data.
ModelSource describe(const RandomModelShape& shape) {
  ModelSource out;
  ModelConfig& c = out.config;
  c.architecture = shape.architecture;
  c.name = fmt::format("random, like {}", shape.name);
  c.layers = shape.layers;
  c.model_dim = shape.model_dim;
  c.heads = shape.heads;
  c.kv_heads = shape.kv_heads;
  c.head_dim = c.rotary_dim = kHeadDim;
  c.ffn_dim = shape.ffn_dim;
  c.vocab_size = shape.vocab_size;
  c.context_length = shape.context_length;
  c.norm_epsilon = shape.norm_epsilon;
  c.rope_base = shape.rope_base;
  out.tied_output = shape.tied;
  const auto view = [](int64_t rows, int64_t columns) {
    return MatrixView{WeightType::kF32, rows, columns, nullptr};
  };
  const int64_t d = shape.model_dim;
  const int64_t q = int64_t{shape.heads} * kHeadDim;
  const int64_t kv = int64_t{shape.kv_heads} * kHeadDim;
  out.embedding = out.output = view(shape.vocab_size, d);
  out.output_norm = view(1, d);
  LayerTensors l;
  l.attention_norm = l.ffn_norm = view(1, d);
  l.wq = view(q, d);
  l.wk = l.wv = view(kv, d);
  l.wo = view(d, q);
  l.gate = l.up = view(shape.ffn_dim, d);
  l.down = view(d, shape.ffn_dim);
  if (find_architecture(shape.architecture)->qkv_bias) {
    l.bq = view(1, q);
    l.bk = l.bv = view(1, kv);
  }
  out.layers.assign(static_cast<size_t>(shape.layers), l);
  return out;
}

}  // namespace

std::vector<std::string_view> random_model_names() {
  std::vector<std::string_view> names;
  for (const RandomModelShape& shape : kShapes) names.push_back(shape.name);
  return names;
}

Status make_random_model(const std::string& like, RandomTypes types, uint64_t seed, const std::string& path) {
  std::string known;
  for (const RandomModelShape& shape : kShapes) {
    if (shape.name == like) return make_random_model(shape, types, seed, path);
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
  }
  return Status::error(fmt::format("--like {}: expected one of {}", printable(like), known));
}

Status make_random_model(const RandomModelShape& shape, RandomTypes types, uint64_t seed,
                         const std::string& path) {
  Texts texts;
  ModelSource source = describe(shape);
  source.vocabulary = Vocabulary(shape, texts).make();
  Weights weights(seed);
  std::vector<GgufEntry> entries;
  for (const GgufTensorName& tensor : gguf_tensor_names(source)) {
    GgufEntry entry{tensor.name, {tensor.view.columns}, WeightType::kF32, {}};
    if (tensor.matrix) {
      entry.shape.push_back(tensor.view.rows);
      entry.type = type_of(tensor.name, tensor.view.columns, shape, types);
    }
    entry.bytes = [&weights, described = entry] { return weights.make(described); };
    entries.push_back(std::move(entry));
  }
  return save_gguf_model(source, types == RandomTypes::kQ4_0 ? 2 : 15, entries, path);
}

}  // namespace kvfold
