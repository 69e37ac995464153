#include "loaders/convert.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "loaders/architectures.h"
#include "loaders/gguf_save.h"

namespace kvfold {
namespace {

// Where a row of q or k comes from, when heads of half-split pairs (i, i + n/2) are to have interleaved ones
// (2i, 2i + 1).
int64_t interleaved_row(int64_t row, const ModelConfig& c) {
  const int64_t head = row / c.head_dim;
  const int64_t at = row % c.head_dim;
  if (at >= c.rotary_dim) return row;
  return head * c.head_dim + at % 2 * (c.rotary_dim / 2) + at / 2;
}

}  // namespace

Status convert_to_gguf(const ModelSource& source, const Quantization& quantization, ThreadPool& pool,
                       const std::string& path) {
  if (!quantization.none) KVFOLD_RETURN_IF_ERROR(check_finite(source));  // quantised, they would not show
  const Architecture* architecture = find_architecture(source.config.architecture);
  KVFOLD_CHECK(architecture != nullptr);
  const bool permute = source.config.rope_pairing == RopePairing::kHalfSplit &&
                       architecture->gguf_pairing == RopePairing::kInterleaved;
  KVFOLD_CHECK(permute || source.config.rope_pairing == architecture->gguf_pairing);

  std::vector<std::byte> bytes;  // of the tensor whose turn it is
  std::vector<GgufEntry> entries;
  for (const GgufTensorName& tensor : gguf_tensor_names(source)) {
    const MatrixView& view = tensor.view;
    const bool makes_logits =
        tensor.name == "output.weight" || (source.tied_output && tensor.name == "token_embd.weight");
    GgufEntry entry{tensor.name, {view.columns}, WeightType::kF32, {}};
    MatrixView rows = view;
    if (tensor.matrix) {
      entry.shape.push_back(view.rows);
      entry.type = quantization.type_of(view, makes_logits);
    } else {
      std::swap(rows.rows, rows.columns);  // elements are permuted as a matrix's rows are
    }
    entry.bytes = [&source, &pool, &bytes, rows, name = tensor.name, type = entry.type,
                   moved = permute && tensor.query_key]() -> Result<std::span<const std::byte>> {
      std::function<int64_t(int64_t)> row_at = [](int64_t row) { return row; };
      if (moved) row_at = [&](int64_t row) { return interleaved_row(row, source.config); };
      Result<std::vector<std::byte>> made = requantize(rows, type, row_at, pool);
      if (!made.ok()) return made.status().with_prefix(fmt::format("{}: tensor '{}': ", source.path, name));
      bytes = std::move(*made);
      if (source.release) source.release(rows);
      return std::span<const std::byte>(bytes);
    };
    entries.push_back(std::move(entry));
  }
  return save_gguf_model(source, quantization.file_type(source.layers.at(0).wq.type), entries, path);
}

std::vector<std::string> gguf_remarks(const ModelSource& source) {
  std::vector<std::string> out;
  const VocabularySource& v = source.vocabulary;
  if (std::count_if(v.end_tokens.begin(), v.end_tokens.end(), [&](TokenId id) { return id != v.eos; }) > 2)
    out.emplace_back("GGUF names three tokens that end a generation: the others of them end none");
  if (v.model == "llama" && v.space_prefix == SpacePrefix::kText)
    out.emplace_back(
        "GGUF has a space before the text and behind every special token, the model before the text alone");
  if (v.model == "llama" && v.one_space)
    out.emplace_back("GGUF has a space before every text, the model not where one is there");
  if (v.model == "llama" && v.symbols_in_text)
    out.emplace_back(
        "GGUF takes user-defined tokens out of a text first, the model finds them behind the space before "
        "it");
  const ModelConfig& c = source.config;
  const bool llama = c.architecture == "llama";
  if (!llama && !c.rope_factors.empty())
    out.push_back(fmt::format("llama.cpp reads no scaled RoPE in {} models", c.architecture));
  if (c.architecture == "qwen2" && c.heads * c.head_dim != c.model_dim)
    out.emplace_back("llama.cpp reads qwen2 models alone whose heads are as wide together as the model");
  if (c.architecture == "qwen3" && source.layers.at(0).bq.data != nullptr)
    out.emplace_back("llama.cpp reads no qwen3 models with biases");
  return out;
}

}  // namespace kvfold
