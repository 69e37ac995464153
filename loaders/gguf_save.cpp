#include "loaders/gguf_save.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>

#include "engine/file.h"
#include "engine/tokenizer/token_map.h"
#include "kernels/formats/formats.h"
#include "loaders/gguf.h"

namespace kvfold {
namespace {

constexpr size_t kAlignment = 32;

// What stands before the tensors: counts, metadata, descriptions of the tensors.
class Header {
 public:
  void u32(const std::string& key, int64_t value) {
    begin(key, GgufType::kUint32);
    put(static_cast<uint32_t>(value));
  }
  void f32(const std::string& key, float value) {
    begin(key, GgufType::kFloat32);
    put(value);
  }
  void boolean(const std::string& key, bool value) {
    begin(key, GgufType::kBool);
    put(static_cast<uint8_t>(value));
  }
  void string(const std::string& key, std::string_view value) {
    begin(key, GgufType::kString);
    text(value);
  }
  void strings(const std::string& key, std::span<const std::string_view> values) {
    begin_array(key, GgufType::kString, values.size());
    for (const std::string_view value : values) text(value);
  }
  template <class T>
  void array(const std::string& key, GgufType type, std::span<const T> values) {
    static_assert(sizeof(T) == 4);
    begin_array(key, type, values.size());
    out_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  }

  // The whole, padded to where the tensors begin; `offset` counts from there.
  std::string finish(std::span<const GgufEntry> tensors, std::span<const size_t> offsets) {
    std::string whole = "GGUF";
    std::swap(whole, out_);
    put(uint32_t{3});
    put<uint64_t>(tensors.size());
    put<uint64_t>(entries_);
    out_ += whole;
    for (size_t i = 0; i < tensors.size(); ++i) {
      text(tensors[i].name);
      put(static_cast<uint32_t>(tensors[i].shape.size()));
      for (const int64_t size : tensors[i].shape) put(static_cast<uint64_t>(size));
      put(static_cast<uint32_t>(tensors[i].type));
      put<uint64_t>(offsets[i]);
    }
    out_.resize((out_.size() + kAlignment - 1) / kAlignment * kAlignment);
    return std::move(out_);
  }

 private:
  static_assert(std::endian::native == std::endian::little);

  void begin(const std::string& key, GgufType type) {
    ++entries_;
    text(key);
    put(static_cast<uint32_t>(type));
  }
  void begin_array(const std::string& key, GgufType element, size_t count) {
    begin(key, GgufType::kArray);
    put(static_cast<uint32_t>(element));
    put<uint64_t>(count);
  }
  template <class T>
  void put(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(std::string_view value) {
    put<uint64_t>(value.size());
    out_ += value;
  }

  std::string out_;
  uint64_t entries_ = 0;
};

void write_config(const ModelConfig& c, uint32_t file_type, Header& header) {
  const auto key = [&](const char* name) { return fmt::format("{}.{}", c.architecture, name); };
  header.string("general.architecture", c.architecture);
  header.string("general.name", c.name);
  header.u32("general.file_type", file_type);
  header.u32("general.quantization_version", 2);
  header.u32(key("block_count"), c.layers);
  header.u32(key("context_length"), c.context_length);
  header.u32(key("embedding_length"), c.model_dim);
  header.u32(key("feed_forward_length"), c.ffn_dim);
  header.u32(key("attention.head_count"), c.heads);
  header.u32(key("attention.head_count_kv"), c.kv_heads);
  header.u32(key("attention.key_length"), c.head_dim);
  header.u32(key("attention.value_length"), c.head_dim);
  if (c.attention_window > 0) header.u32(key("attention.sliding_window"), c.attention_window);
  header.f32(key("attention.layer_norm_rms_epsilon"), c.norm_epsilon);
  header.f32(key("rope.freq_base"), c.rope_base);
  header.u32(key("rope.dimension_count"), c.rotary_dim);
  header.u32(key("vocab_size"), c.vocab_size);
}

// Scores that merge in the order of a vocabulary's merges: a token scores by the first merge that makes it.
std::vector<float> scores_of_merges(const VocabularySource& v) {
  const TokenMap map(v.tokens);
  std::vector<float> scores(v.tokens.size(), 0);
  std::string merged;
  for (size_t rank = v.merges.size(); rank-- > 0;) {
    const size_t space = v.merges[rank].find(' ', 1);
    merged.assign(v.merges[rank].substr(0, space)).append(v.merges[rank].substr(space + 1));
    if (const TokenId id = map.find(merged); id >= 0) scores[id] = -static_cast<float>(rank);
  }
  return scores;
}

void write_vocabulary(const VocabularySource& v, Header& header) {
  const bool spm = v.model == "llama";
  header.string("tokenizer.ggml.model", v.model);
  header.string("tokenizer.ggml.pre", spm && v.pre_tokenizer.empty() ? "default" : v.pre_tokenizer);
  header.strings("tokenizer.ggml.tokens", v.tokens);
  if (!v.types.empty()) {
    std::vector<int32_t> types;
    for (const TokenType type : v.types) types.push_back(static_cast<int32_t>(type));
    header.array<int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, types);
  }
  if (spm) {
    header.array<float>("tokenizer.ggml.scores", GgufType::kFloat32,
                        v.scores.empty() ? scores_of_merges(v) : v.scores);
    header.boolean("tokenizer.ggml.add_space_prefix", v.space_prefix != SpacePrefix::kNone);
  } else {
    header.strings("tokenizer.ggml.merges", v.merges);
  }
  const auto id = [&](const char* key, TokenId token) {
    if (token >= 0) header.u32(key, token);
  };
  id("tokenizer.ggml.bos_token_id", v.bos);
  id("tokenizer.ggml.eos_token_id", v.eos);
  id("tokenizer.ggml.unknown_token_id", v.unknown);
  id("tokenizer.ggml.padding_token_id", v.padding);
  // GGUF has names for two more tokens that end a generation.
  std::vector<TokenId> ends = v.end_tokens;
  std::erase(ends, v.eos);
  if (!ends.empty()) id("tokenizer.ggml.eot_token_id", ends[0]);
  if (ends.size() > 1) id("tokenizer.ggml.eom_token_id", ends[1]);
  header.boolean("tokenizer.ggml.add_bos_token", v.add_bos);
  header.boolean("tokenizer.ggml.add_eos_token", v.add_eos);
  if (!v.chat_template.empty()) header.string("tokenizer.chat_template", v.chat_template);
}

size_t bytes_of(const GgufEntry& entry) {
  const FormatInfo& format = format_info(entry.type);
  int64_t count = 1;
  for (const int64_t size : entry.shape) count *= size;
  return static_cast<size_t>(count / format.block_elements * format.block_bytes);
}

size_t aligned(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

std::vector<GgufTensorName> gguf_tensor_names(const ModelSource& source) {
  std::vector<GgufTensorName> all;
  const auto add = [&](std::string name, const MatrixView& view, bool matrix, bool query_key = false) {
    if (view.rows > 0) all.push_back({std::move(name), view, matrix, query_key});
  };
  add("token_embd.weight", source.embedding, true);
  add("output_norm.weight", source.output_norm, false);
  if (!source.tied_output) add("output.weight", source.output, true);
  for (size_t i = 0; i < source.layers.size(); ++i) {
    const LayerTensors& l = source.layers[i];
    const auto layer = [&](const char* role, const MatrixView& view, bool matrix, bool query_key = false) {
      add(fmt::format("blk.{}.{}", i, role), view, matrix, query_key);
    };
    layer("attn_norm.weight", l.attention_norm, false);
    layer("attn_q.weight", l.wq, true, true);
    layer("attn_k.weight", l.wk, true, true);
    layer("attn_v.weight", l.wv, true);
    layer("attn_output.weight", l.wo, true);
    layer("attn_q.bias", l.bq, false, true);
    layer("attn_k.bias", l.bk, false, true);
    layer("attn_v.bias", l.bv, false);
    layer("attn_output.bias", l.bo, false);
    layer("attn_q_norm.weight", l.q_norm, false);
    layer("attn_k_norm.weight", l.k_norm, false);
    layer("ffn_norm.weight", l.ffn_norm, false);
    layer("ffn_gate.weight", l.gate, true);
    layer("ffn_up.weight", l.up, true);
    layer("ffn_down.weight", l.down, true);
  }
  return all;
}

Status save_gguf_model(const ModelSource& source, uint32_t file_type, std::span<const GgufEntry> tensors,
                       const std::string& path) {
  Header header;
  write_config(source.config, file_type, header);
  write_vocabulary(source.vocabulary, header);
  std::vector<GgufEntry> all(tensors.begin(), tensors.end());
  const std::vector<float>& factors = source.config.rope_factors;
  if (!factors.empty())
    all.push_back({"rope_freqs.weight", {static_cast<int64_t>(factors.size())}, WeightType::kF32, [&factors] {
                     return std::as_bytes(std::span(factors));
                   }});
  std::vector<size_t> offsets;
  size_t offset = 0;
  for (const GgufEntry& entry : all) {
    offsets.push_back(offset);
    offset = aligned(offset + bytes_of(entry));
  }
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  KVFOLD_RETURN_IF_ERROR(file.write(header.finish(all, offsets)));
  for (const GgufEntry& entry : all) {
    KVFOLD_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, entry.bytes());
    KVFOLD_CHECK(bytes.size() == bytes_of(entry));
    KVFOLD_RETURN_IF_ERROR(file.write(bytes));
    KVFOLD_RETURN_IF_ERROR(file.write(std::string(aligned(bytes.size()) - bytes.size(), '\0')));
  }
  return file.commit();
}

}  // namespace kvfold
