#include "tests/tiny_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/random.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/formats/formats.h"

namespace kvfold::testing {
namespace {

constexpr const char* kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + "
    "'\\n'}}{% endfor %}";

// GPT-2's name of a byte.
std::string byte_name(int b) {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names(256);
    char32_t next = 256;
    for (int i = 0; i < 256; ++i) {
      const bool printable = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
      utf8_append(printable ? static_cast<char32_t>(i) : next++, names[i]);
    }
    return names;
  }();
  return kNames[b];
}

class Maker {
 public:
  explicit Maker(const TinyModelOptions& options) : o_(options), random_(options.seed) {}

  GgufWriter make() {
    describe();
    vocabulary();
    const int d = o_.model_dim();
    const int kv = o_.kv_heads * o_.head_dim;
    matrix("token_embd.weight", vocab_, d, 1.0);
    vector("output_norm.weight", d, 1.0, 0.1);
    if (!o_.tied) matrix("output.weight", vocab_, d, 3.0 / std::sqrt(d));
    for (int i = 0; i < o_.layers; ++i) {
      const std::string blk = "blk." + std::to_string(i) + ".";
      vector(blk + "attn_norm.weight", d, 1.0, 0.1);
      vector(blk + "ffn_norm.weight", d, 1.0, 0.1);
      const double scale = 2.0 / std::sqrt(d);
      matrix(blk + "attn_q.weight", d, d, scale);
      matrix(blk + "attn_k.weight", kv, d, scale);
      matrix(blk + "attn_v.weight", kv, d, scale);
      matrix(blk + "attn_output.weight", d, d, scale);
      if (o_.architecture == "qwen2") {
        vector(blk + "attn_q.bias", d, 0, 0.5);
        vector(blk + "attn_k.bias", kv, 0, 0.5);
        vector(blk + "attn_v.bias", kv, 0, 0.5);
      }
      if (o_.architecture == "qwen3") {
        vector(blk + "attn_q_norm.weight", o_.head_dim, 1.0, 0.3);
        vector(blk + "attn_k_norm.weight", o_.head_dim, 1.0, 0.3);
      }
      matrix(blk + "ffn_gate.weight", o_.ffn_dim, d, scale);
      matrix(blk + "ffn_up.weight", o_.ffn_dim, d, scale);
      matrix(blk + "ffn_down.weight", d, o_.ffn_dim, 1.0 / std::sqrt(o_.ffn_dim));
    }
    return std::move(out_);
  }

 private:
  void describe() {
    const std::string a = o_.architecture + ".";
    out_.string("general.architecture", o_.architecture).string("general.name", "tiny");
    out_.u32(a + "block_count", static_cast<uint32_t>(o_.layers));
    out_.u32(a + "context_length", static_cast<uint32_t>(o_.context_length));
    out_.u32(a + "embedding_length", static_cast<uint32_t>(o_.model_dim()));
    out_.u32(a + "feed_forward_length", static_cast<uint32_t>(o_.ffn_dim));
    out_.u32(a + "attention.head_count", static_cast<uint32_t>(o_.heads));
    out_.u32(a + "attention.head_count_kv", static_cast<uint32_t>(o_.kv_heads));
    out_.f32(a + "attention.layer_norm_rms_epsilon", 1e-5F);
    out_.f32(a + "rope.freq_base", o_.rope_base);
  }

  void vocabulary() {
    std::vector<std::string> tokens;
    std::vector<int32_t> types;
    for (int b = 0; b < 256; ++b) tokens.push_back(byte_name(b));
    const std::vector<std::string> merges = {"t h", "th e", "a n", "i n", "e r", byte_name(' ') + " t"};
    for (const std::string& merge : merges) {
      std::string merged = merge;
      merged.erase(merged.find(' '), 1);
      tokens.push_back(merged);
    }
    types.assign(tokens.size(), static_cast<int32_t>(TokenType::kNormal));
    for (const char* control : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
      tokens.emplace_back(control);
      types.push_back(static_cast<int32_t>(TokenType::kControl));
    }
    while (tokens.size() % 32 != 0) {
      tokens.push_back("<unused" + std::to_string(tokens.size()) + ">");
      types.push_back(static_cast<int32_t>(TokenType::kUnused));
    }
    vocab_ = static_cast<int>(tokens.size());
    out_.string("tokenizer.ggml.model", "gpt2");
    out_.string("tokenizer.ggml.pre", o_.architecture == "llama" ? "smollm" : "qwen2");
    out_.strings("tokenizer.ggml.tokens", tokens).ints("tokenizer.ggml.token_type", types);
    out_.strings("tokenizer.ggml.merges", merges).string("tokenizer.chat_template", kChatMl);
    out_.u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(256 + merges.size() + 2));
  }

  std::vector<float> gaussian(int64_t count, double mean, double deviation) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = static_cast<float>(mean + deviation * random_.gaussian());
    return values;
  }

  void tensor(const std::string& name, std::vector<uint64_t> shape, WeightType type,
              const std::vector<float>& values) {
    const FormatInfo& format = format_info(type);
    std::string data(values.size() / format.block_elements * format.block_bytes, '\0');
    format.encode(values.data(), reinterpret_cast<std::byte*>(data.data()), values.size());
    out_.tensors.push_back({name, std::move(shape), static_cast<uint32_t>(type), std::move(data)});
  }
  void matrix(const std::string& name, int64_t rows, int64_t columns, double deviation) {
    tensor(name, {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)}, o_.type,
           gaussian(rows * columns, 0, deviation));
  }
  void vector(const std::string& name, int64_t size, double mean, double deviation) {
    tensor(name, {static_cast<uint64_t>(size)}, WeightType::kF32, gaussian(size, mean, deviation));
  }

  TinyModelOptions o_;
  Random random_;
  GgufWriter out_;
  int vocab_ = 0;
};

}  // namespace

GgufWriter tiny_model(const TinyModelOptions& options) { return Maker(options).make(); }

std::unique_ptr<Session> tiny_session(const TemporaryFolder& folder, const TinyModelOptions& model,
                                      const OpenOptions& options) {
  const std::string path = folder.write("tiny.gguf", tiny_model(model).build());
  Result<std::unique_ptr<Session>> session = open_session(path, options);
  EXPECT_TRUE(session.ok()) << session.status().message();
  if (!session.ok()) std::abort();
  return std::move(*session);
}

}  // namespace kvfold::testing
