#include "tests/fuzz/small_files.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/kv/exchange.h"
#include "engine/kv/ops.h"
#include "engine/kv/projector.h"
#include "engine/random.h"
#include "engine/tokenizer/utf8.h"
#include "tests/gguf_writer.h"

namespace kvfold::fuzz {
namespace {

using testing::Bytes;
using testing::GgufWriter;

template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().message().c_str());
    std::abort();
  }
  return std::move(*result);
}

// GPT-2's name of a byte.
std::string byte_name(int b) {
  const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  int others = 0;  // before b
  for (int i = 0; i < b; ++i)
    if (!((i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174)) ++others;
  std::string name;
  utf8_append(static_cast<char32_t>(printable ? b : 256 + others), name);
  return name;
}

// A model of one layer whose tensors hold `block` again and again: of `columns` columns, which is a block.
void add_tensors(GgufWriter& writer, int vocabulary, int columns, uint32_t type, size_t block_bytes,
                 bool biased) {
  const auto n = static_cast<uint64_t>(columns);
  const auto matrix = [&](const std::string& name, uint64_t rows) {
    writer.tensors.push_back({name, {n, rows}, type, std::string(rows * block_bytes, '\x11')});
  };
  const auto vector = [&](const std::string& name, uint64_t size) {
    writer.tensors.push_back({name, {size}, 0, std::string(size * 4, '\x3C')});
  };
  matrix("token_embd.weight", static_cast<uint64_t>(vocabulary));
  vector("output_norm.weight", n);
  for (const char* name : {"attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
    matrix(fmt::format("blk.0.{}.weight", name), n);
  for (const char* name : {"attn_k", "attn_v"}) matrix(fmt::format("blk.0.{}.weight", name), n / 2);
  vector("blk.0.attn_norm.weight", n);
  vector("blk.0.ffn_norm.weight", n);
  if (!biased) return;
  vector("blk.0.attn_q.bias", n);
  vector("blk.0.attn_k.bias", n / 2);
  vector("blk.0.attn_v.bias", n / 2);
}

void describe(GgufWriter& writer, const std::string& architecture, int columns) {
  const auto n = static_cast<uint32_t>(columns);
  writer.string("general.architecture", architecture).string("general.name", "small");
  const std::string a = architecture + ".";
  writer.u32(a + "block_count", 1).u32(a + "context_length", 64).u32(a + "embedding_length", n);
  writer.u32(a + "feed_forward_length", n).u32(a + "attention.head_count", 2);
  writer.u32(a + "attention.head_count_kv", 1).f32(a + "attention.layer_norm_rms_epsilon", 1e-5F);
  writer.f32(a + "rope.freq_base", 10000.0F).u32(a + "rope.dimension_count", n / 2);
}

std::string spm_gguf() {
  GgufWriter writer;
  writer.alignment = 8;
  describe(writer, "llama", 4);
  writer.u32("general.alignment", 8).string("llama.rope.scaling.type", "none");
  const std::vector<std::string> tokens = {"<unk>", "<s>",          "</s>", "<0x0A>",
                                           "a",     "\xE2\x96\x81", "aa",   "sym"};
  writer.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", tokens);
  writer.ints("tokenizer.ggml.token_type", {2, 3, 3, 6, 1, 1, 1, 4});
  Bytes scores;
  scores.put(static_cast<uint32_t>(GgufType::kArray)).put(static_cast<uint32_t>(GgufType::kFloat32));
  scores.put<uint64_t>(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) scores.put(-static_cast<float>(i));
  writer.entry("tokenizer.ggml.scores", scores.str());
  writer.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  writer.u32("tokenizer.ggml.unknown_token_id", 0).boolean("tokenizer.ggml.add_bos_token", true);
  writer.boolean("tokenizer.ggml.add_space_prefix", true);
  writer.string("tokenizer.chat_template", "{% if messages[0]['role'] == 'system' %}<|system|></s>");
  add_tensors(writer, static_cast<int>(tokens.size()), 4, 0, 16, false);
  writer.tensors.push_back({"rope_freqs.weight", {1}, 0, std::string("\0\0\x80\x3F", 4)});
  return writer.build();
}

std::string bpe_gguf() {
  GgufWriter writer;
  writer.version = 2;
  describe(writer, "qwen2", 32);
  const std::vector<std::string> tokens = {"t",          "h",     "e", "th", "the", byte_name(' '),
                                           "<|im_end|>", "<0x41>"};
  writer.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "qwen2");
  writer.strings("tokenizer.ggml.tokens", tokens).strings("tokenizer.ggml.merges", {"t h", "th e"});
  writer.ints("tokenizer.ggml.token_type", {1, 1, 1, 1, 1, 5, 3, 6});
  writer.value("tokenizer.ggml.eos_token_id", GgufType::kUint64, uint64_t{6});
  writer.value("tokenizer.ggml.padding_token_id", GgufType::kInt16, int16_t{6});
  writer.value("x.f64", GgufType::kFloat64, 1.5).value("x.i8", GgufType::kInt8, int8_t{-1});
  writer.string("tokenizer.chat_template", "<|im_start|>{{ x }}<|im_end|>");
  add_tensors(writer, static_cast<int>(tokens.size()), 32, 2, 18, true);
  return writer.build();
}

std::string safetensors_file(const std::string& header, size_t data) {
  std::string out(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + std::string(data, '\x01');
}

std::string read_file(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

constexpr CacheShape kShape = {1, 2, 8};

KvCache small_cache(CacheType type, int rows) {
  const auto pool = must(PagePool::create(type, kShape.head_dim, 1 << 20));
  KvCache cache(pool, kShape);
  const std::vector<TokenId> tokens(static_cast<size_t>(rows), 7);
  if (!cache.grow(tokens).ok()) std::abort();
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < kShape.lanes(); ++lane)
      for (const KvSpan& span : cache.lanes().table(part, lane).spans())
        std::memset(pool->write(span.page), 0, pool->page_bytes());
  return cache;
}

ProjectorData small_projector() {
  const CacheShape shape = {1, 1, 2};  // rows of four
  ProjectorData data{
      "ridge", {"0123456789abcdef", "small", shape}, {"fedcba9876543210", "other", shape}, {}, {}};
  for (const char* name : {"mean_in", "scale_in", "mean_out", "scale_out", "first"})
    data.tensors[fmt::format("ridge.{}", name)] = {{4}, std::vector<float>(4, 0.5F), false};
  data.tensors["ridge.down"] = {{1, 4}, std::vector<float>(4, 1), true};
  data.tensors["ridge.up"] = {{4, 1}, std::vector<float>(4, 1), true};
  data.notes["texts"] = "2";
  return data;
}

void add_caches(std::vector<Seed>& out) {
  const std::string path = fmt::format("/tmp/kvfold-seed-{}", getpid());
  const auto add = [&](const std::string& name, const Status& status) {
    if (!status.ok()) std::abort();
    out.push_back({"cache", name, read_file(path)});
    std::filesystem::remove(path);
  };
  const CacheModelInfo model = small_cache_model();
  add("f16", save_cache(small_cache(CacheType::kF16, 3), model, path));
  add("q8", save_cache(small_cache(CacheType::kQ8, 2), model, path));
  add("empty", save_cache(small_cache(CacheType::kF32, 0), model, path));
  const KvCache whole = small_cache(CacheType::kF32, 4);
  const KvCache ragged =
      must(erase(whole, must(Selection::parse("heads=1 rows=1-2", whole.shape(), whole.size()))));
  add("ragged", save_cache(ragged, model, path));
  add("projector", save_projector(small_projector(), path));
  add("exported", export_cache(small_cache(CacheType::kF32, 3), model, true, path));
}

void add_texts(std::vector<Seed>& out) {
  const std::string text = "Hello the 1234 \xC3\xA9\n\n  'tis <|im_start|> \xE2\x96\x81 \xFF don't";
  out.push_back({"tokenizer", "bpe", std::string(1, '\0') + text});
  out.push_back({"tokenizer", "spm", std::string(1, '\1') + text});
  // Three pieces, the trainer (BPE) and the normaliser, in protobuf's wire format.
  const std::string model = std::string("\x0A\x0E\x0A\x05<unk>\x15\0\0\0\0\x18\x02", 16) +
                            std::string("\x0A\x0C\x0A\x03<s>\x15\0\0\0\0\x18\x03", 14) +
                            std::string("\x0A\x0D\x0A\x04</s>\x15\0\0\0\0\x18\x03", 15) +
                            std::string(
                                "\x0A\x0A\x0A\x01"
                                "a\x15\0\0\x80\xBF\x18\x01",
                                12) +
                            std::string("\x12\x02\x18\x02\x1A\x0C\x0A\x08identity\x20\0", 18);
  out.push_back({"tokenizer", "sentencepiece", std::string(1, '\2') + model});
  const auto trial = [](const std::string& id, const std::string& other) {
    return R"({"id":")" + id + R"(","phase":"2a","family":"f","set":"plan","item":"i","source":"s",)" +
           R"("target":"t","markers":["m"],"answer":"a","contrast":{"prefix":"p","marker":"m","twin":"w"},)" +
           R"("twin":{"source":"s","markers":["w"],"answer":"a"},"mismatched":")" + other +
           R"(","decoys":["d"],"filler":"f","mode":null,"entity":null,"truth_markers":[],"probes":{"x":"y"}})" +
           "\n";
  };
  out.push_back({"prompts", "two", trial("a", "b") + trial("b", "a")});
  out.push_back({"lines", "corpus",
                 std::string(1, '\0') + R"({"id":"a","split":"test","kind":"k","text":"t t"})" + "\n"});
  out.push_back(
      {"lines", "facts",
       std::string(1, '\1') +
           R"({"id":"a","kind":"k","text":"t","name":"n","city":"c","twin_name":"m","twin_city":"d"})" +
           "\n"});
  out.push_back(
      {"lines", "records", std::string(1, '\2') + R"({"trial":"a","lines":2,"ld":null,"x":[0.5]})" + "\n"});
  out.push_back(
      {"json", "any", std::string(1, '\0') + R"({"a":[1,-2.5e3,null,true,"\u00e9"],"b":{"c":{}}})"});
  out.push_back(
      {"json", "config",
       std::string(1, '\1') +
           R"({"model_type":"llama","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,)"
           R"("num_key_value_heads":1,"intermediate_size":8,"vocab_size":16,"max_position_embeddings":64,)"
           R"("rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu","tie_word_embeddings":true,)"
           R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
           R"("original_max_position_embeddings":32},"eos_token_id":[1,2],"bos_token_id":0})"});
  out.push_back(
      {"json", "tokenizer",
       std::string(1, '\2') +
           R"({"version":"1.0","added_tokens":[{"id":3,"content":"<s>","special":true,"normalized":false,)"
           R"("single_word":false,"lstrip":false,"rstrip":false}],"normalizer":null,)"
           R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,)"
           R"("use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel"},)"
           R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})"});
}

}  // namespace

CacheModelInfo small_cache_model() {
  return {"0123456789abcdef", "llama", "small", 10000, RopePairing::kHalfSplit, kShape.head_dim};
}

std::shared_ptr<const Tokenizer> small_bpe() {
  static std::vector<std::string> names;
  for (int b = 0; b < 256; ++b) names.push_back(byte_name(b));
  for (const char* more : {"th", "the", "<|im_start|>", "<|im_end|>"}) names.emplace_back(more);
  VocabularySource source;
  source.model = "gpt2";
  source.pre_tokenizer = "smollm";
  source.tokens.assign(names.begin(), names.end());
  source.merges = {"t h", "th e"};
  source.types.assign(names.size(), TokenType::kNormal);
  source.types[258] = source.types[259] = TokenType::kControl;
  return must(Tokenizer::create(source, nullptr));
}

std::shared_ptr<const Tokenizer> small_spm() {
  static std::vector<std::string> names = {"<unk>", "<s>", "</s>"};
  for (int b = 0; b < 256; ++b) names.push_back(fmt::format("<0x{:02X}>", b));
  for (const char* more : {"\xE2\x96\x81", "t", "h", "e", "th", "the", "\xE2\x96\x81the"})
    names.emplace_back(more);
  VocabularySource source;
  source.model = "llama";
  source.tokens.assign(names.begin(), names.end());
  source.types.assign(names.size(), TokenType::kNormal);
  source.types[0] = TokenType::kUnknown;
  source.types[1] = source.types[2] = TokenType::kControl;
  for (int b = 0; b < 256; ++b) source.types[3 + b] = TokenType::kByte;
  source.types[names.size() - 3] = TokenType::kUnused;  // merged, and taken apart again
  for (size_t i = 0; i < names.size(); ++i) source.scores.push_back(-static_cast<float>(names.size() - i));
  source.unknown = 0;
  source.bos = 1;
  source.eos = 2;
  source.add_bos = true;
  return must(Tokenizer::create(source, nullptr));
}

std::vector<Seed> seeds() {
  std::vector<Seed> out = {{"gguf", "spm", spm_gguf()}, {"gguf", "bpe", bpe_gguf()}};
  out.push_back(
      {"safetensors", "two",
       safetensors_file(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":)"
                        R"([0,16]},"b":{"dtype":"U8","shape":[],"data_offsets":[16,17]}})",
                        17)});
  out.push_back({"safetensors", "none", safetensors_file("{}", 0)});
  add_caches(out);
  add_texts(out);
  return out;
}

}  // namespace kvfold::fuzz
