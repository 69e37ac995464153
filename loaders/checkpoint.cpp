#include "loaders/checkpoint.h"

#include <fmt/core.h>

#include <array>
#include <climits>
#include <cstring>
#include <filesystem>
#include <map>

#include "engine/printable.h"
#include "engine/safetensors.h"
#include "kernels/formats/formats.h"
#include "loaders/checkpoint_config.h"
#include "loaders/checkpoint_tokenizer.h"
#include "loaders/fingerprint.h"
#include "loaders/json.h"

namespace kvfold {
namespace {

// A file with weights, mapped and parsed.
struct Shard {
  std::shared_ptr<const MappedFile> file;
  SafetensorsFile parsed;
};

// Everything that the views of a ModelSource point to.
struct Storage {
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<std::vector<float>> copies;  // of tensors that lie unaligned; float for its alignment
  std::shared_ptr<const void> vocabulary;
};

Result<Shard> open_shard(const std::string& path) {
  Shard shard;
  KVFOLD_ASSIGN_OR_RETURN(shard.file, MappedFile::open(path));
  KVFOLD_ASSIGN_OR_RETURN(shard.parsed, parse_safetensors(shard.file->bytes(), path));
  return shard;
}

// The tensors of one file or of many, by name.
class Weights {
 public:
  static Result<Weights> open(const std::string& folder) {
    Weights out;
    const std::string single = folder + "/model.safetensors";
    const std::string index = folder + "/model.safetensors.index.json";
    if (file_exists(single) || !file_exists(index)) {
      KVFOLD_ASSIGN_OR_RETURN(Shard shard, open_shard(single));
      out.where_ = single;
      for (const auto& [name, tensor] : shard.parsed.tensors) out.places_[name] = 0;
      out.shards_.push_back(std::move(shard));
      return out;
    }
    KVFOLD_RETURN_IF_ERROR(out.open_indexed(folder, index));
    return out;
  }

  // Null when there is none of that name. `path` is the file that holds it, or ought to.
  const SafetensorsTensor* find(const std::string& name, std::string& path) const {
    const auto at = places_.find(name);
    path = where_;
    if (at == places_.end()) return nullptr;
    const Shard& shard = shards_[at->second];
    path = shard.file->path();
    return &shard.parsed.tensors.at(name);
  }
  const std::vector<Shard>& shards() const { return shards_; }
  // The name of the tensor whose data begins there; "" where none does.
  std::string name_of(const std::byte* data) const {
    for (const Shard& shard : shards_)
      for (const auto& [name, tensor] : shard.parsed.tensors)
        if (tensor.bytes.data() == data) return name;
    return "";
  }

 private:
  // The index's weight_map says which file holds which tensor.
  Status open_indexed(const std::string& folder, const std::string& path) {
    where_ = path;
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject index, JsonObject::open(path));
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject map, index.object("weight_map"));
    std::map<std::string, size_t> opened;
    for (const auto& [name, value] : map.value().items()) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view given, map.string(name));
      const std::string file(given);
      if (file.empty() || file.find('/') != std::string::npos || file.find('\0') != std::string::npos ||
          file.size() > NAME_MAX)
        return map.wrong(name, value, "the name of a file in the same folder");
      const auto [at, fresh] = opened.try_emplace(file, shards_.size());
      if (fresh) {
        KVFOLD_ASSIGN_OR_RETURN(Shard shard, open_shard(folder + "/" + file));
        shards_.push_back(std::move(shard));
      }
      if (!shards_[at->second].parsed.tensors.contains(name))
        return map.wrong(name, value, "a file that holds this tensor");
      places_[name] = at->second;
    }
    return {};
  }

  std::string where_;  // what a message names for a tensor that is nowhere
  std::vector<Shard> shards_;
  std::map<std::string, size_t> places_;  // the shard of each tensor
};

class CheckpointReader {
 public:
  CheckpointReader(const std::string& folder, CheckpointConfig config, Weights weights)
      : folder_(folder),
        config_(std::move(config)),
        parsed_(std::make_shared<const Weights>(std::move(weights))),
        weights_(*parsed_) {}

  Result<ModelSource> read() {
    out_.path = folder_;
    out_.config = config_.model;
    out_.config.name =
        std::filesystem::absolute(folder_ + "/.").lexically_normal().parent_path().filename().string();
    for (const Shard& shard : weights_.shards()) storage_->files.push_back(shard.file);
    out_.release = [files = storage_->files](const MatrixView& view) {
      const FormatInfo& format = format_info(view.type);
      const auto bytes = static_cast<size_t>(view.rows * view.columns * format.block_bytes);
      for (const auto& file : files) file->release({view.data, bytes});
    };
    out_.unchanged = [files = storage_->files]() -> Status {
      for (const auto& file : files) KVFOLD_RETURN_IF_ERROR(file->unchanged());
      return {};
    };
    out_.name_of = [parsed = parsed_, copies = copy_names_](const MatrixView& view) {
      const auto copy = copies->find(view.data);
      return copy != copies->end() ? copy->second : parsed->name_of(view.data);
    };
    KVFOLD_RETURN_IF_ERROR(read_tensors());
    KVFOLD_ASSIGN_OR_RETURN(CheckpointVocabulary vocabulary, read_checkpoint_vocabulary(folder_, config_));
    out_.vocabulary = std::move(vocabulary.source);
    storage_->vocabulary = std::move(vocabulary.storage);
    out_.storage = storage_;
    out_.fingerprint = fingerprint(out_);
    return std::move(out_);
  }

 private:
  Result<MatrixView> matrix(const std::string& name, int64_t rows, int64_t columns) {
    return tensor(name, {rows, columns});
  }
  Result<MatrixView> vector(const std::string& name, int64_t size) { return tensor(name, {size}); }

  Result<MatrixView> tensor(const std::string& name, const std::vector<int64_t>& shape) {
    std::string path;
    const SafetensorsTensor* tensor = weights_.find(name, path);
    if (tensor == nullptr) return Status::error(fmt::format("{}: tensor '{}' is missing", path, name));
    const auto wrong = [&](const std::string& found, const std::string& expected) {
      return Status::error(
          fmt::format("{}: tensor '{}': found {}, expected {}", path, name, found, expected));
    };
    if (tensor->shape != shape) return wrong("shape " + shape_text(tensor->shape), shape_text(shape));
    MatrixView view;
    view.rows = shape.size() == 2 ? shape[0] : 1;
    view.columns = shape.back();
    view.data = tensor->bytes.data();
    if (tensor->dtype == "F32") {
      view.type = WeightType::kF32;
    } else if (tensor->dtype == "F16") {
      view.type = WeightType::kF16;
    } else if (tensor->dtype == "BF16") {
      view.type = WeightType::kBF16;
    } else {
      return wrong("dtype " + tensor->dtype, "F32, F16 or BF16");
    }
    if (reinterpret_cast<uintptr_t>(view.data) % sizeof(float) != 0) {
      std::vector<float>& copy = storage_->copies.emplace_back((tensor->bytes.size() + 3) / sizeof(float));
      std::memcpy(copy.data(), tensor->bytes.data(), tensor->bytes.size());
      view.data = reinterpret_cast<const std::byte*>(copy.data());
      (*copy_names_)[view.data] = name;
    }
    return view;
  }

  static bool same_bytes(const MatrixView& a, const MatrixView& b) {
    const FormatInfo& format = format_info(a.type);
    const auto bytes = static_cast<size_t>(a.rows * a.columns * format.block_bytes);
    return a.type == b.type && std::memcmp(a.data, b.data, bytes) == 0;
  }

  static std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return fmt::format("[{}]", printable(text));
  }

  Status read_tensors() {
    const ModelConfig& c = out_.config;
    KVFOLD_ASSIGN_OR_RETURN(out_.embedding, matrix("model.embed_tokens.weight", c.vocab_size, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(out_.output_norm, vector("model.norm.weight", c.model_dim));
    out_.output = out_.embedding;
    std::string ignored;
    const bool there = weights_.find("lm_head.weight", ignored) != nullptr;
    out_.tied_output = config_.says_whether_tied ? config_.tied_output : !there;
    if (!out_.tied_output || there) {
      KVFOLD_ASSIGN_OR_RETURN(out_.output, matrix("lm_head.weight", c.vocab_size, c.model_dim));
      // An output of its own counts, whatever the configuration says (transformers since release 5).
      out_.tied_output = out_.tied_output && same_bytes(out_.output, out_.embedding);
      if (out_.tied_output) out_.output = out_.embedding;
    }
    for (int i = 0; i < c.layers; ++i) KVFOLD_RETURN_IF_ERROR(read_layer(i));
    return {};
  }

  Status read_layer(int index) {
    const ModelConfig& c = out_.config;
    const int64_t q_dim = static_cast<int64_t>(c.heads) * c.head_dim;
    const int64_t kv_dim = static_cast<int64_t>(c.kv_heads) * c.head_dim;
    const auto name = [&](std::string_view role) { return fmt::format("model.layers.{}.{}", index, role); };
    LayerTensors l;
    KVFOLD_ASSIGN_OR_RETURN(l.attention_norm, vector(name("input_layernorm.weight"), c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wq, matrix(name("self_attn.q_proj.weight"), q_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wk, matrix(name("self_attn.k_proj.weight"), kv_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wv, matrix(name("self_attn.v_proj.weight"), kv_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.wo, matrix(name("self_attn.o_proj.weight"), c.model_dim, q_dim));
    if (config_.qkv_bias) {
      KVFOLD_ASSIGN_OR_RETURN(l.bq, vector(name("self_attn.q_proj.bias"), q_dim));
      KVFOLD_ASSIGN_OR_RETURN(l.bk, vector(name("self_attn.k_proj.bias"), kv_dim));
      KVFOLD_ASSIGN_OR_RETURN(l.bv, vector(name("self_attn.v_proj.bias"), kv_dim));
    }
    if (config_.output_bias) {
      KVFOLD_ASSIGN_OR_RETURN(l.bo, vector(name("self_attn.o_proj.bias"), c.model_dim));
    }
    if (config_.architecture->qk_norm) {
      KVFOLD_ASSIGN_OR_RETURN(l.q_norm, vector(name("self_attn.q_norm.weight"), c.head_dim));
      KVFOLD_ASSIGN_OR_RETURN(l.k_norm, vector(name("self_attn.k_norm.weight"), c.head_dim));
    }
    KVFOLD_ASSIGN_OR_RETURN(l.ffn_norm, vector(name("post_attention_layernorm.weight"), c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.gate, matrix(name("mlp.gate_proj.weight"), c.ffn_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.up, matrix(name("mlp.up_proj.weight"), c.ffn_dim, c.model_dim));
    KVFOLD_ASSIGN_OR_RETURN(l.down, matrix(name("mlp.down_proj.weight"), c.model_dim, c.ffn_dim));
    out_.layers.push_back(l);
    return {};
  }

  const std::string& folder_;
  CheckpointConfig config_;
  std::shared_ptr<const Weights> parsed_;
  const Weights& weights_;
  std::shared_ptr<Storage> storage_ = std::make_shared<Storage>();
  // The names of tensors that lie in storage_->copies.
  std::shared_ptr<std::map<const std::byte*, std::string>> copy_names_ =
      std::make_shared<std::map<const std::byte*, std::string>>();
  ModelSource out_;
};

}  // namespace

Result<ModelSource> load_checkpoint(const std::string& folder) {
  KVFOLD_ASSIGN_OR_RETURN(CheckpointConfig config, read_checkpoint_config(folder));
  KVFOLD_ASSIGN_OR_RETURN(Weights weights, Weights::open(folder));
  return CheckpointReader(folder, std::move(config), std::move(weights)).read();
}

}  // namespace kvfold
