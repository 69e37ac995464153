// The weights of a checkpoint: every tensor that its kind needs, each number format, wherever they lie, and
// what a source can say of them later.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/formats/formats.h"
#include "loaders/checkpoint.h"
#include "tests/checkpoint_copy.h"
#include "tests/protobuf.h"

namespace kvfold::testing {
namespace {

constexpr const char* kWeights = "model.safetensors";

// A safetensors file in parts.
struct Parts {
  Json header;
  std::string data;
};
Parts parts_of(const std::string& file) {
  uint64_t size = 0;
  std::memcpy(&size, file.data(), sizeof size);
  return {Json::parse(file.substr(8, size)), file.substr(8 + size)};
}
// `spaces` behind the header move the data.
std::string file_of(const Parts& parts, size_t spaces = 0) {
  const std::string header = parts.header.dump() + std::string(spaces, ' ');
  const uint64_t size = header.size();
  std::string out(sizeof size, '\0');
  std::memcpy(out.data(), &size, sizeof size);
  return out + header + parts.data;
}
// As many spaces as bring the data to an address that is `rest` above a multiple of 4.
size_t spaces_for(const Parts& parts, size_t rest) { return (8 + rest - parts.header.dump().size() % 4) % 4; }

std::vector<float> values(const MatrixView& view) {
  std::vector<float> out(static_cast<size_t>(view.rows * view.columns));
  format_info(view.type).decode(view.data, out.data(), out.size());
  return out;
}
std::vector<float> values(const std::string& bytes) {
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

// All of a source's tensors.
std::vector<MatrixView> all(const ModelSource& source) {
  std::vector<MatrixView> out = {source.embedding, source.output_norm, source.output};
  for (const LayerTensors& l : source.layers)
    for (const MatrixView& view : {l.attention_norm, l.wq, l.wk, l.wv, l.wo, l.bq, l.bk, l.bv, l.bo, l.q_norm,
                                   l.k_norm, l.ffn_norm, l.gate, l.up, l.down})
      if (view.data != nullptr) out.push_back(view);
  return out;
}

// The F32 tensors in another format.
Parts as(WeightType type, const char* dtype, const Parts& parts) {
  Parts out{parts.header, ""};
  for (auto& [name, entry] : out.header.items()) {
    if (name == "__metadata__") continue;
    const auto begin = entry["data_offsets"][0].get<size_t>();
    const auto end = entry["data_offsets"][1].get<size_t>();
    const std::vector<float> numbers = values(parts.data.substr(begin, end - begin));
    std::string bytes(numbers.size() * static_cast<size_t>(format_info(type).block_bytes), '\0');
    format_info(type).encode(numbers.data(), reinterpret_cast<std::byte*>(bytes.data()), numbers.size());
    entry["dtype"] = dtype;
    entry["data_offsets"] = {out.data.size(), out.data.size() + bytes.size()};
    out.data += bytes;
  }
  return out;
}

TEST(CheckpointWeights, EveryTensorIsNeeded) {
  for (const char* name : {"llama-32-4", "llama-bias", "qwen2-all-heads", "qwen3-48"}) {
    const Copy copy(name);
    const Parts good = parts_of(copy.read(kWeights));
    for (const auto& [tensor, entry] : good.header.items()) {
      if (tensor == "__metadata__") continue;
      Parts without = good;
      without.header.erase(tensor);
      without.header["other"] = entry;
      copy.write(kWeights, file_of(without));
      const Result<ModelSource> source = load_checkpoint(copy.path());
      ASSERT_FALSE(source.ok()) << name << " without " << tensor;
      EXPECT_EQ(source.status().message(),
                copy.path() + "/model.safetensors: tensor '" + tensor + "' is missing");
    }
    EXPECT_GT(good.header.size(), 20U);
  }
}

TEST(CheckpointWeights, EveryNumberFormat) {
  const Copy copy("llama-bias");
  const Parts parts = parts_of(copy.read(kWeights));
  const Result<ModelSource> whole = load_checkpoint(copy.path());
  ASSERT_TRUE(whole.ok()) << whole.status().message();
  const std::vector<MatrixView> expected = all(*whole);
  for (const auto& [type, dtype] : {std::pair(WeightType::kF16, "F16"), {WeightType::kBF16, "BF16"}}) {
    const Copy halves("llama-bias");
    halves.write(kWeights, file_of(as(type, dtype, parts)));
    const Result<ModelSource> source = load_checkpoint(halves.path());
    ASSERT_TRUE(source.ok()) << source.status().message();
    const std::vector<MatrixView> found = all(*source);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].type, type);
      std::vector<float> rounded = values(expected[i]);
      std::vector<std::byte> bytes(2 * rounded.size());
      format_info(type).encode(rounded.data(), bytes.data(), rounded.size());
      format_info(type).decode(bytes.data(), rounded.data(), rounded.size());
      EXPECT_EQ(values(found[i]), rounded) << i;
    }
    EXPECT_NE(source->fingerprint, whole->fingerprint);
  }
}

// Data that begin anywhere are copied to where they may be read; nothing else is different.
TEST(CheckpointWeights, UnalignedTensorsAreTheSame) {
  const Copy copy("llama-bias");
  const Parts parts = parts_of(copy.read(kWeights));
  std::vector<ModelSource> sources;
  for (size_t rest = 0; rest < 4; ++rest) {
    copy.write("moved", file_of(parts, spaces_for(parts, rest)));
    std::filesystem::rename(copy.file("moved"), copy.file(kWeights));  // those of before stay mapped
    Result<ModelSource> source = load_checkpoint(copy.path());
    ASSERT_TRUE(source.ok()) << source.status().message();
    sources.push_back(std::move(*source));
  }
  for (const ModelSource& source : sources) {
    EXPECT_EQ(source.fingerprint, sources[0].fingerprint);
    EXPECT_EQ(source.name_of(source.layers[1].bo), "model.layers.1.self_attn.o_proj.bias");
    EXPECT_EQ(source.name_of(source.embedding), "model.embed_tokens.weight");
    for (const MatrixView& view : all(source)) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % sizeof(float), 0U);
      source.release(view);
    }
    EXPECT_EQ(values(source.layers[1].down), values(sources[0].layers[1].down));
  }
}

TEST(CheckpointWeights, NamesInManyFiles) {
  const Result<ModelSource> source = load_checkpoint(kCheckpoints + "llama-9-3-tied");
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(source->name_of(source->embedding), "model.embed_tokens.weight");
  EXPECT_EQ(source->name_of(source->output_norm), "model.norm.weight");
  EXPECT_EQ(source->name_of(source->layers[1].down), "model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(source->name_of({WeightType::kF32, 1, 1, nullptr}), "");
}

TEST(CheckpointWeights, WhatIsNotFiniteIsNamed) {
  const Copy copy("llama-bias");
  Parts parts = parts_of(copy.read(kWeights));
  const auto at = parts.header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0].get<size_t>();
  constexpr float kNone = std::numeric_limits<float>::infinity();
  std::memcpy(&parts.data[at + 4], &kNone, sizeof kNone);
  for (const size_t rest : {0, 1}) {
    copy.write(kWeights, file_of(parts, spaces_for(parts, rest)));
    const Result<ModelSource> source = load_checkpoint(copy.path());
    ASSERT_TRUE(source.ok()) << source.status().message();
    const std::string message = check_finite(*source).message();
    EXPECT_NE(message.find("'model.layers.1.mlp.up_proj.weight'"), std::string::npos) << message;
  }
}

TEST(CheckpointWeights, AFileThatIsWrittenToLaterIsNoticed) {
  const Copy copy("llama-9-3-tied");
  const Result<ModelSource> source = load_checkpoint(copy.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_TRUE(source->unchanged().ok());
  std::ofstream(copy.file("model-00003-of-00004.safetensors"), std::ios::app) << "more";
  const std::string message = source->unchanged().message();
  EXPECT_NE(message.find("model-00003-of-00004.safetensors"), std::string::npos) << message;
}

// Where config.json does not say, the output is the embedding if there is no other.
TEST(CheckpointWeights, TiedByWhatThereIs) {
  for (const auto& [name, tied] : {std::pair("llama-32-4", false), {"llama-15-5-tied", true}}) {
    const Copy copy(name);
    copy.edit("config.json", [](Json& json) { json.erase("tie_word_embeddings"); });
    const Result<ModelSource> source = load_checkpoint(copy.path());
    ASSERT_TRUE(source.ok()) << source.status().message();
    EXPECT_EQ(source->tied_output, tied) << name;
    EXPECT_EQ(source->output.data == source->embedding.data, tied) << name;
  }
}

// Where it says that they are one, an output of the files' own counts all the same, and a copy is none.
TEST(CheckpointWeights, AnOutputBesideATiedOne) {
  const Copy copy("llama-15-5-tied");
  const Parts parts = parts_of(copy.read(kWeights));
  const Json& embedding = parts.header["model.embed_tokens.weight"];
  const auto begin = embedding["data_offsets"][0].get<size_t>();
  const auto end = embedding["data_offsets"][1].get<size_t>();
  for (const bool differs : {false, true}) {
    Parts both = parts;
    std::string output = parts.data.substr(begin, end - begin);
    output.back() = static_cast<char>(output.back() ^ (differs ? 1 : 0));
    both.header["lm_head.weight"] = {{"dtype", embedding["dtype"]},
                                     {"shape", embedding["shape"]},
                                     {"data_offsets", {both.data.size(), both.data.size() + output.size()}}};
    both.data += output;
    copy.write(kWeights, file_of(both));
    const Result<ModelSource> source = load_checkpoint(copy.path());
    ASSERT_TRUE(source.ok()) << source.status().message();
    EXPECT_EQ(source->tied_output, !differs);
    EXPECT_EQ(source->output.data == source->embedding.data, !differs);
  }
}

TEST(CheckpointWeights, IndexNamesNoFile) {
  const Copy copy("llama-9-3-tied");
  const std::string whole = "model-00001-of-00004.safetensors";
  const std::pair<std::string, std::string> names[] = {
      {"", ""},
      {whole + '\0' + "x", whole + "?x"},  // which the system takes for the whole
      {std::string(256, 'x'), std::string(80, 'x') + "..."}};
  for (const auto& entry : names) {
    copy.edit("model.safetensors.index.json",
              [&](Json& json) { json["weight_map"]["model.norm.weight"] = entry.first; });
    EXPECT_EQ(load_checkpoint(copy.path()).status().message(),
              copy.path() +
                  "/model.safetensors.index.json: key 'weight_map.model.norm.weight': found the string '" +
                  entry.second + "', expected the name of a file in the same folder");
  }
}

// With a tokenizer.model in place of tokenizer.json.
TEST(CheckpointWeights, TokensOfSentencePiece) {
  const Copy copy("llama-32-4");
  copy.remove("tokenizer.json");
  const std::string rest = bytes(2, number(3, 2)) + bytes(3, number(4, 0));
  std::string pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
  copy.write("tokenizer.model", pieces + rest);
  const Result<ModelSource> source = load_checkpoint(copy.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(source->vocabulary.tokens.size(), 32U);
  EXPECT_EQ(source->vocabulary.tokens[3], "[PAD3]");
  EXPECT_EQ(source->vocabulary.types[3], TokenType::kUnused);
  EXPECT_EQ(source->vocabulary.scores.size(), 32U);
  EXPECT_EQ(source->vocabulary.bos, 27);  // config.json's
  EXPECT_EQ(source->vocabulary.eos, 28);  // generation_config.json's

  copy.write("added_tokens.json", R"({"<x>": 32})");
  EXPECT_EQ(load_checkpoint(copy.path()).status().message(),
            copy.path() +
                "/added_tokens.json: key '<x>': found the number 32, expected an id below config.json's "
                "vocab_size, 32");
  for (char c = 'A'; c < 'A' + 30; ++c) pieces += piece(std::string(1, c), -1, 1);
  copy.write("tokenizer.model", pieces + rest);
  EXPECT_EQ(load_checkpoint(copy.path()).status().message(),
            copy.path() + "/tokenizer.model: found 33 pieces, expected at most config.json's vocab_size, 32");
}

}  // namespace
}  // namespace kvfold::testing
