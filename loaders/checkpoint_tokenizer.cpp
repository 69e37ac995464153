#include "loaders/checkpoint_tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "engine/file.h"
#include "engine/printable.h"
#include "engine/text_hash.h"
#include "engine/tokenizer/bpe.h"
#include "loaders/json.h"
#include "loaders/limits.h"
#include "loaders/sentencepiece_model.h"
#include "loaders/tokenizer_pipeline.h"

namespace kvfold {
namespace {

using Json = nlohmann::json;

// What the views of a VocabularySource point to.
struct Strings {
  std::vector<std::string> tokens, merges;
  std::string chat_template;
};

class VocabularyReader {
 public:
  // `path`: tokenizer.json or tokenizer.model.
  VocabularyReader(std::string path, const CheckpointConfig& config)
      : path_(std::move(path)),
        folder_(std::filesystem::path(path_).parent_path().string()),
        config_(config),
        strings_(std::make_shared<Strings>()) {
    strings_->tokens.resize(static_cast<size_t>(config_.model.vocab_size));
    out_.types.assign(strings_->tokens.size(), TokenType::kUnused);
  }

  Result<CheckpointVocabulary> read() {
    if (std::filesystem::path(path_).extension() == ".json") {
      KVFOLD_RETURN_IF_ERROR(read_json());
    } else {
      KVFOLD_RETURN_IF_ERROR(read_model_file());
    }
    KVFOLD_RETURN_IF_ERROR(read_chat_template());
    out_.tokens.assign(strings_->tokens.begin(), strings_->tokens.end());
    out_.merges.assign(strings_->merges.begin(), strings_->merges.end());
    out_.chat_template = strings_->chat_template;
    return CheckpointVocabulary{std::move(out_), strings_};
  }

 private:
  Status read_json() {
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::open(path_));
    allow_ids(path_, 0);
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject model, json.object("model"));
    KVFOLD_ASSIGN_OR_RETURN(const TokenizerPipeline pipeline, read_tokenizer_pipeline(json));
    out_.model = pipeline.byte_fallback ? "llama" : "gpt2";
    out_.pre_tokenizer = pipeline.pre_tokenizer;
    out_.space_prefix = pipeline.space_prefix;
    out_.one_space = pipeline.one_space;
    KVFOLD_RETURN_IF_ERROR(read_tokens(model));
    KVFOLD_RETURN_IF_ERROR(read_added(json, pipeline));
    name_unused();
    KVFOLD_RETURN_IF_ERROR(read_merges(model));
    KVFOLD_RETURN_IF_ERROR(read_unknown(model, pipeline));
    if (pipeline.byte_fallback) type_like_llama();
    out_.bos = config_.bos;
    out_.add_bos = !pipeline.begin_token.empty();
    out_.add_eos = !pipeline.end_token.empty();
    return read_ends(json, pipeline);
  }

  // As the Llama tokenizers of transformers take it: added tokens stand in files beside it.
  Status read_model_file() {
    KVFOLD_ASSIGN_OR_RETURN(SentencePieceModel model, read_sentencepiece_model(path_));
    const size_t pieces = model.source.tokens.size();
    if (config_.model.vocab_size > 0 && pieces > strings_->tokens.size())
      return Status::error(fmt::format("{}: found {} pieces, expected at most config.json's vocab_size, {}",
                                       path_, pieces, config_.model.vocab_size));
    std::vector<TokenType> types = std::move(out_.types);
    types.resize(std::max(pieces, types.size()), TokenType::kUnused);
    std::ranges::copy(model.source.types, types.begin());
    strings_->tokens.resize(types.size());
    for (size_t i = 0; i < pieces; ++i) {
      strings_->tokens[i] = model.source.tokens[i];
      ids_.try_emplace(strings_->tokens[i], static_cast<TokenId>(i));
    }
    out_ = std::move(model.source);
    out_.types = std::move(types);
    if (config_.bos >= 0) out_.bos = config_.bos;
    KVFOLD_RETURN_IF_ERROR(read_added_beside());
    name_unused();
    out_.scores.resize(strings_->tokens.size(), 0);
    return read_ends({}, {});
  }

  // added_tokens.json: {text: id}. tokenizer_config.json: {"added_tokens_decoder": {id: {"content": text}}},
  // and "legacy": false, with which only the text as a whole gets a space before it.
  Status read_added_beside() {
    const std::string added = folder_ + "/added_tokens.json";
    const size_t pieces = strings_->tokens.size();
    if (file_exists(added)) {
      allow_ids(added, pieces);
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::open(added));
      for (const auto& [text, id] : json.value().items())
        KVFOLD_RETURN_IF_ERROR(place(json, text, text, id, TokenType::kControl));
    }
    const std::string path = folder_ + "/tokenizer_config.json";
    if (!file_exists(path)) return {};
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::open(path));
    KVFOLD_ASSIGN_OR_RETURN(const bool legacy, config.flag("legacy", true));
    if (!legacy && out_.space_prefix == SpacePrefix::kSegment) out_.space_prefix = SpacePrefix::kText;
    if (!config.has("added_tokens_decoder")) return {};
    allow_ids(path, pieces);
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject decoder, config.object("added_tokens_decoder"));
    for (const auto& [key, value] : decoder.value().items()) {
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject token, decoder.object(key));
      uint64_t number = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), number);
      const bool whole = error == std::errc() && end == key.data() + key.size();
      const Json id = whole ? Json(number) : Json(key);
      KVFOLD_ASSIGN_OR_RETURN(const bool special, token.flag("special", false));
      KVFOLD_ASSIGN_OR_RETURN(const std::string content, added_text(token));
      KVFOLD_RETURN_IF_ERROR(
          place(decoder, key, content, id, special ? TokenType::kControl : TokenType::kUserDefined));
    }
    return {};
  }

  // Without config.json nothing says how many tokens there are: a file may name as many ids as it has bytes,
  // behind those that are `known`.
  void allow_ids(const std::string& path, size_t known) {
    std::error_code ignored;
    const size_t bytes = std::filesystem::file_size(path, ignored);
    most_ids_ = known + std::min(bytes, static_cast<size_t>(kMostWidth) - known);
  }

  Status place(const JsonObject& where, const std::string& key, const std::string& text, const Json& id,
               TokenType type) {
    const bool bounded = config_.model.vocab_size > 0;
    const size_t most = bounded ? strings_->tokens.size() : most_ids_;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= most)
      return where.wrong(key, id,
                         fmt::format("an id below {}{}", bounded ? "config.json's vocab_size, " : "", most));
    const auto index = id.get<uint64_t>();
    if (index >= strings_->tokens.size()) {
      strings_->tokens.resize(index + 1);
      out_.types.resize(index + 1, TokenType::kUnused);
    }
    std::string& token = strings_->tokens[index];
    const bool taken = out_.types[index] != TokenType::kUnused;
    if (taken && token != text)
      return where.wrong(key, fmt::format("id {}", index),
                         fmt::format("another, as that is '{}'", printable(token)));
    token = text;
    // Llama's <unk> is listed among the added tokens too, and its bytes may be.
    if (!taken || out_.types[index] == TokenType::kNormal) out_.types[index] = type;
    ids_.try_emplace(text, static_cast<TokenId>(index));
    return {};
  }

  Status read_tokens(const JsonObject& model) {
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject vocab, model.object("vocab"));
    if (vocab.value().empty()) return model.wrong("vocab", vocab.value(), "tokens with their ids");
    ids_.reserve(vocab.value().size());
    for (const auto& [text, id] : vocab.value().items())
      KVFOLD_RETURN_IF_ERROR(place(vocab, text, text, id, TokenType::kNormal));
    return {};
  }

  // The text of an added token, of which some swallow white space around them or match whole words alone.
  static Result<std::string> added_text(const JsonObject& token) {
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view content, token.string("content"));
    if (content.empty()) return token.wrong("content", "an empty string", "a token's text");
    for (const char* key : {"lstrip", "rstrip", "single_word"}) {
      KVFOLD_ASSIGN_OR_RETURN(const bool set, token.flag(key, false));
      if (set) return token.wrong(key, fmt::format("true for '{}'", printable(content)), "false");
    }
    return std::string(content);
  }

  Status read_added(const JsonObject& json, const TokenizerPipeline& pipeline) {
    if (!json.has("added_tokens")) return {};
    KVFOLD_ASSIGN_OR_RETURN(const Json* added, json.array("added_tokens"));
    for (size_t i = 0; i < added->size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject token,
                              json.object_in((*added)[i], fmt::format("added_tokens[{}]", i)));
      KVFOLD_ASSIGN_OR_RETURN(const std::string content, added_text(token));
      KVFOLD_ASSIGN_OR_RETURN(const bool special, token.flag("special", false));
      KVFOLD_ASSIGN_OR_RETURN(const bool normalized, token.flag("normalized", false));
      // Old files of Llama say it of "<s>" and "</s>". The library then misses them in "ok</s>", which nobody
      // means: control tokens are taken where they stand, as in GGUF files.
      if (normalized && !special && pipeline.normalizes)
        return token.wrong("normalized", fmt::format("true for '{}'", printable(content)),
                           "false, as the normaliser changes the text that it would be matched in");
      if (!token.has("id")) return token.wrong("id", "none", "an integer");
      KVFOLD_RETURN_IF_ERROR(place(token, "id", content, token.value()["id"],
                                   special ? TokenType::kControl : TokenType::kUserDefined));
    }
    return {};
  }

  // The embedding often has rows for more tokens than there are.
  void name_unused() {
    for (size_t i = 0; i < strings_->tokens.size(); ++i)
      if (out_.types[i] == TokenType::kUnused) strings_->tokens[i] = fmt::format("[PAD{}]", i);
  }

  // "left right", or since tokenizers 0.20 ["left", "right"].
  Status read_merges(const JsonObject& model) {
    KVFOLD_ASSIGN_OR_RETURN(const Json* merges, model.array("merges"));
    strings_->merges.reserve(merges->size());
    for (size_t i = 0; i < merges->size(); ++i) {
      const Json& merge = (*merges)[i];
      const bool pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
      std::string text = merge.is_string() ? merge.get<std::string>() : "";
      if (pair) text = merge[0].get<std::string>() + ' ' + merge[1].get<std::string>();
      const size_t space = text.find(' ');
      const std::string left = text.substr(0, space);
      const std::string right = space == std::string::npos ? "" : text.substr(space + 1);
      if (!ids_.contains(left) || !ids_.contains(right) || !ids_.contains(left + right))
        return model.wrong(fmt::format("merges[{}]", i), merge, "two tokens whose union is a token");
      strings_->merges.push_back(std::move(text));
    }
    // Of equal merges the last one counts, as in the library.
    std::unordered_set<std::string, TextHash> later;
    std::vector<std::string>& all = strings_->merges;
    const auto repeated = [&](const std::string& merge) { return !later.insert(merge).second; };
    all.erase(all.begin(), std::remove_if(all.rbegin(), all.rend(), repeated).base());
    return {};
  }

  // Which token stands for what has none. GPT-2's file names an empty one, as it never needs it.
  Status read_unknown(const JsonObject& model, const TokenizerPipeline& pipeline) {
    if (!model.has("unk_token")) return {};
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view text, model.string("unk_token"));
    KVFOLD_ASSIGN_OR_RETURN(const bool fused, model.flag("fuse_unk", false));
    const int lacking = byte_without_token(pipeline);
    const bool needed = lacking >= 0 && pipeline.byte_fallback;
    if (!text.empty() || needed) KVFOLD_RETURN_IF_ERROR(find(model, "unk_token", text, out_.unknown));
    if (!pipeline.byte_fallback) {
      out_.for_bytes = out_.unknown;
      out_.fuse_unknown = fused;
    }
    if (needed && !fused)
      return model.wrong("fuse_unk", "false",
                         fmt::format("true, as there is no token for byte 0x{:02X}", lacking));
    return {};
  }

  // The first byte that the vocabulary cannot write; -1 where it can write all.
  int byte_without_token(const TokenizerPipeline& pipeline) const {
    for (int byte = 0; byte < 256; ++byte)
      if (!ids_.contains(pipeline.byte_fallback
                             ? fmt::format("<0x{:02X}>", byte)
                             : std::string(byte_level_character(static_cast<uint8_t>(byte)))))
        return byte;
    return -1;
  }

  Status find(const JsonObject& where, const std::string& key, std::string_view text, TokenId& out) const {
    const auto at = ids_.find(std::string(text));
    if (at == ids_.end())
      return where.wrong(key, fmt::format("'{}'", printable(text)), "a token of tokenizer.json");
    out = at->second;
    return {};
  }

  // A token that the post-processor writes, by its text; `id` is what it says of it, if that is not -1.
  Status find_around(const JsonObject& json, std::string_view text, int64_t id, TokenId& out) const {
    KVFOLD_RETURN_IF_ERROR(find(json, "post_processor", text, out));
    if (id == -1 || id == out) return {};
    return json.wrong("post_processor", fmt::format("id {} for '{}'", id, printable(text)),
                      fmt::format("{}, as in the vocabulary", out));
  }

  // Types as Llama's own vocabulary has them. Merges stay merges: converters rank them by score, but only the
  // ranks tell which of two pairs with one union goes first.
  void type_like_llama() {
    // One that is no added token is not found in texts.
    if (out_.unknown >= 0 && out_.types[static_cast<size_t>(out_.unknown)] != TokenType::kNormal)
      out_.types[static_cast<size_t>(out_.unknown)] = TokenType::kUnknown;
    for (int byte = 0; byte < 256; ++byte)
      if (const auto at = ids_.find(fmt::format("<0x{:02X}>", byte)); at != ids_.end())
        out_.types[static_cast<size_t>(at->second)] = TokenType::kByte;
  }

  // tokenizer_config.json names a token as a string, or as an object with its text in "content".
  Status read_named(const JsonObject& config, const std::string& key, TokenId& out) const {
    if (!config.has(key)) return {};
    const Json& value = config.value()[key];
    if (!value.is_object()) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view text, config.string(key));
      return find(config, key, text, out);
    }
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject token, config.object(key));
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view text, token.string("content"));
    return find(token, "content", text, out);
  }

  // Which tokens begin and end a text and a generation. tokenizer_config.json is asked first, then the
  // post-processor, which writes them around a text, then the ids of config.json.
  // `json`: where the post-processor's tokens are named, or null.
  Status read_ends(const std::optional<JsonObject>& json, const TokenizerPipeline& pipeline) {
    out_.end_tokens = config_.end_tokens;
    if (!config_.end_tokens.empty()) out_.eos = config_.end_tokens[0];
    const std::string path = folder_ + "/tokenizer_config.json";
    if (file_exists(path)) {
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::open(path));
      KVFOLD_RETURN_IF_ERROR(read_named(config, "bos_token", out_.bos));
      KVFOLD_RETURN_IF_ERROR(read_named(config, "eos_token", out_.eos));
      KVFOLD_RETURN_IF_ERROR(read_named(config, "pad_token", out_.padding));
      KVFOLD_ASSIGN_OR_RETURN(out_.add_bos, config.flag("add_bos_token", out_.add_bos));
      KVFOLD_ASSIGN_OR_RETURN(out_.add_eos, config.flag("add_eos_token", out_.add_eos));
      if (out_.add_bos && out_.bos < 0 && pipeline.begin_token.empty())
        return config.wrong("add_bos_token", "true", "false, as there is no bos_token");
      if (out_.add_eos && out_.eos < 0 && pipeline.end_token.empty())
        return config.wrong("add_eos_token", "true", "false, as there is no eos_token");
    }
    if (out_.add_bos && !pipeline.begin_token.empty())
      KVFOLD_RETURN_IF_ERROR(find_around(*json, pipeline.begin_token, pipeline.begin_id, out_.bos));
    if (out_.add_eos && !pipeline.end_token.empty())
      KVFOLD_RETURN_IF_ERROR(find_around(*json, pipeline.end_token, pipeline.end_id, out_.eos));
    return {};
  }

  // In a file of its own since transformers 4.45; before, in tokenizer_config.json, as one or as a list of
  // them by name.
  Status read_chat_template() {
    const std::string jinja = folder_ + "/chat_template.jinja";
    if (file_exists(jinja)) {
      std::error_code ignored;
      if (std::filesystem::file_size(jinja, ignored) == 0) return {};
      KVFOLD_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> file, MappedFile::open(jinja));
      strings_->chat_template.assign(reinterpret_cast<const char*>(file->bytes().data()),
                                     file->bytes().size());
      return {};
    }
    const std::string path = folder_ + "/tokenizer_config.json";
    if (!file_exists(path)) return {};
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::open(path));
    if (!config.has("chat_template")) return {};
    const Json& value = config.value()["chat_template"];
    if (!value.is_array()) {
      KVFOLD_ASSIGN_OR_RETURN(strings_->chat_template, config.string("chat_template"));
      return {};
    }
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string name = fmt::format("chat_template[{}]", i);
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject entry, config.object_in(value[i], name));
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view called, entry.string("name"));
      if (called != "default") continue;
      KVFOLD_ASSIGN_OR_RETURN(strings_->chat_template, entry.string("template"));
    }
    return {};
  }

  const std::string path_, folder_;
  const CheckpointConfig config_;
  std::shared_ptr<Strings> strings_;
  size_t most_ids_ = 0;
  std::unordered_map<std::string, TokenId, TextHash> ids_;
  VocabularySource out_;
};

}  // namespace

Result<CheckpointVocabulary> read_checkpoint_vocabulary(const std::string& folder,
                                                        const CheckpointConfig& config) {
  const std::string json = folder + "/tokenizer.json";
  const std::string model = folder + "/tokenizer.model";
  return VocabularyReader(!file_exists(json) && file_exists(model) ? model : json, config).read();
}

Result<CheckpointVocabulary> read_tokenizer_file(const std::string& path) {
  return VocabularyReader(path, {}).read();
}

}  // namespace kvfold
