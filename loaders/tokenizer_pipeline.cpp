#include "loaders/tokenizer_pipeline.h"

#include <fmt/core.h>

#include <vector>

#include "engine/printable.h"
#include "loaders/limits.h"

namespace kvfold {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kLowerBar = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// The patterns by which Split is recognised, as the models' files write them.
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// A byte-level pre-tokenizer: what its steps come down to, and the options that go with it elsewhere in the
// file.
struct ByteLevelKind {
  std::string_view steps;
  std::string_view name;
  bool nfc, ignore_merges;
};
constexpr ByteLevelKind kByteLevelKinds[] = {
    {"digits byte-level-regex", "smollm", false, false},
    {"byte-level-regex", "gpt-2", false, false},
    {"split-qwen2 byte-level", "qwen2", true, false},
    {"split-llama3 byte-level", "llama-bpe", false, true},
};

class PipelineReader {
 public:
  explicit PipelineReader(const JsonObject& json) : json_(json) {}

  Result<TokenizerPipeline> read() {
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject model, json_.object("model"));
    KVFOLD_RETURN_IF_ERROR(read_model(model));
    KVFOLD_RETURN_IF_ERROR(read_normalizers());
    KVFOLD_RETURN_IF_ERROR(out_.byte_fallback ? read_metaspace(model) : read_byte_level(model));
    KVFOLD_RETURN_IF_ERROR(read_post_processors());
    KVFOLD_RETURN_IF_ERROR(read_decoders());
    return std::move(out_);
  }

 private:
  // A step, or the steps of a Sequence, flattened: {type, object}.
  struct Step {
    std::string type;
    JsonObject json;
  };

  Result<std::vector<Step>> steps(const std::string& key, const char* list) const {
    std::vector<Step> out;
    if (!json_.has(key)) return out;
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject first, json_.object(key));
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view type, first.string("type"));
    if (type != "Sequence") {
      out.push_back({std::string(type), first});
      return out;
    }
    KVFOLD_ASSIGN_OR_RETURN(const Json* entries, first.array(list));
    for (size_t i = 0; i < entries->size(); ++i) {
      KVFOLD_ASSIGN_OR_RETURN(JsonObject entry,
                              first.object_in((*entries)[i], fmt::format("{}[{}]", list, i)));
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view entry_type, entry.string("type"));
      out.push_back({std::string(entry_type), std::move(entry)});
    }
    return out;
  }

  Status read_model(const JsonObject& model) {
    if (model.has("type")) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view type, model.string("type"));
      if (type != "BPE") return model.wrong("type", model.value()["type"], "BPE");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!model.has(key)) continue;
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view text, model.string(key));
      if (!text.empty()) return model.wrong(key, model.value()[key], "none");
    }
    if (model.has("dropout")) {
      KVFOLD_ASSIGN_OR_RETURN(const double dropout, model.number("dropout"));
      if (dropout != 0) return model.wrong("dropout", model.value()["dropout"], "none");
    }
    KVFOLD_ASSIGN_OR_RETURN(out_.byte_fallback, model.flag("byte_fallback", false));
    return {};
  }

  Status read_normalizers() {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Step> all, steps("normalizer", "normalizers"));
    for (const Step& step : all) {
      const bool spm = out_.byte_fallback;
      if (!spm && step.type == "NFC") {
        nfc_ = true;
      } else if (spm && step.type == "Prepend" && !replaces_spaces_ &&
                 out_.space_prefix == SpacePrefix::kNone) {
        KVFOLD_RETURN_IF_ERROR(expect(step.json, "prepend", kLowerBar));
        out_.space_prefix = SpacePrefix::kSegment;
      } else if (spm && step.type == "Replace") {
        KVFOLD_ASSIGN_OR_RETURN(const JsonObject pattern, step.json.object("pattern"));
        KVFOLD_RETURN_IF_ERROR(expect(pattern, "String", " "));
        KVFOLD_RETURN_IF_ERROR(expect(step.json, "content", kLowerBar));
        replaces_spaces_ = true;
      } else {
        return step.json.wrong("type", step.json.value()["type"],
                               spm ? "Prepend and Replace of spaces, as Llama's" : "NFC, or none");
      }
    }
    if (out_.space_prefix != SpacePrefix::kNone && !replaces_spaces_)
      return json_.wrong("normalizer", "Prepend", "Prepend and Replace of spaces, as Llama's");
    out_.normalizes = !all.empty();
    return {};
  }

  static Status expect(const JsonObject& json, const char* key, std::string_view expected) {
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view found, json.string(key));
    if (found == expected) return {};
    return json.wrong(key, json.value()[key], expected == kLowerBar ? "U+2581" : "a space");
  }

  // SentencePiece's spaces: written by the normaliser, or by Metaspace.
  Status read_metaspace(const JsonObject& model) {
    KVFOLD_ASSIGN_OR_RETURN(const bool ignore_merges, model.flag("ignore_merges", false));
    if (ignore_merges) return model.wrong("ignore_merges", "true", "false, as the model falls back to bytes");
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Step> all, steps("pre_tokenizer", "pretokenizers"));
    for (const Step& step : all) {
      if (step.type != "Metaspace" || replaces_spaces_)
        return step.json.wrong("type", step.json.value()["type"],
                               replaces_spaces_ ? "no pre-tokenizer, as the normaliser replaces spaces"
                                                : "Metaspace, as the model falls back to bytes");
      KVFOLD_RETURN_IF_ERROR(expect(step.json, "replacement", kLowerBar));
      KVFOLD_ASSIGN_OR_RETURN(const bool split, step.json.flag("split", true));
      if (split) return step.json.wrong("split", "true", "false");
      KVFOLD_ASSIGN_OR_RETURN(out_.space_prefix, prepend_scheme(step.json));
      out_.one_space = true;
      replaces_spaces_ = true;
    }
    if (!replaces_spaces_)
      return json_.wrong("pre_tokenizer", "none",
                         "Metaspace, as the model falls back to bytes and the normaliser leaves spaces");
    return {};
  }

  // What older files say by add_prefix_space may not contradict it.
  static Result<SpacePrefix> prepend_scheme(const JsonObject& metaspace) {
    std::string_view scheme = "always";
    if (metaspace.has("prepend_scheme")) {
      KVFOLD_ASSIGN_OR_RETURN(scheme, metaspace.string("prepend_scheme"));
    }
    if (scheme != "always" && scheme != "first" && scheme != "never")
      return metaspace.wrong("prepend_scheme", metaspace.value()["prepend_scheme"], "always, first or never");
    KVFOLD_ASSIGN_OR_RETURN(const bool prefix, metaspace.flag("add_prefix_space", true));
    if (!prefix && scheme != "never")
      return metaspace.wrong("add_prefix_space", "false",
                             fmt::format("true, as prepend_scheme is {}", scheme));
    return scheme == "always"  ? SpacePrefix::kSegment
           : scheme == "first" ? SpacePrefix::kText
                               : SpacePrefix::kNone;
  }

  // A word for a step of a byte-level pre-tokenizer, as kByteLevelKinds has them; "" when it is none of them.
  static Result<std::string> byte_level_step(const Step& step) {
    if (step.type == "Digits") {
      KVFOLD_ASSIGN_OR_RETURN(const bool individual, step.json.flag("individual_digits", false));
      return std::string(individual ? "digits" : "");
    }
    if (step.type == "ByteLevel") {
      KVFOLD_ASSIGN_OR_RETURN(const bool prefix, step.json.flag("add_prefix_space", true));
      if (prefix) return step.json.wrong("add_prefix_space", "true", "false");
      KVFOLD_ASSIGN_OR_RETURN(const bool regex, step.json.flag("use_regex", true));
      return std::string(regex ? "byte-level-regex" : "byte-level");
    }
    if (step.type != "Split") return std::string();
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject pattern, step.json.object("pattern"));
    if (!pattern.has("Regex")) return std::string();
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view regex, pattern.string("Regex"));
    KVFOLD_ASSIGN_OR_RETURN(const std::string_view behaviour, step.json.string("behavior"));
    if (behaviour != "Isolated")
      return step.json.wrong("behavior", step.json.value()["behavior"], "Isolated");
    KVFOLD_ASSIGN_OR_RETURN(const bool invert, step.json.flag("invert", false));
    if (invert) return step.json.wrong("invert", "true", "false");
    if (regex == kQwen2Pattern) return std::string("split-qwen2");
    if (regex == kLlama3Pattern) return std::string("split-llama3");
    return pattern.wrong("Regex", pattern.value()["Regex"], "the pattern of Qwen 2 or of Llama 3");
  }

  Status read_byte_level(const JsonObject& model) {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Step> all, steps("pre_tokenizer", "pretokenizers"));
    std::string words, types;
    for (const Step& step : all) {
      KVFOLD_ASSIGN_OR_RETURN(const std::string word, byte_level_step(step));
      words += (words.empty() ? "" : " ") + (word.empty() ? "?" : word);
      types += (types.empty() ? "" : ", ") + step.type;
    }
    KVFOLD_ASSIGN_OR_RETURN(const bool ignore_merges, model.flag("ignore_merges", false));
    for (const ByteLevelKind& kind : kByteLevelKinds) {
      if (kind.steps != words) continue;
      if (kind.nfc != nfc_)
        return json_.wrong(
            "normalizer", nfc_ ? "NFC" : "none",
            fmt::format("{}, as the pre-tokenizer is that of {}", kind.nfc ? "NFC" : "none", kind.name));
      if (kind.ignore_merges != ignore_merges)
        return model.wrong(
            "ignore_merges", ignore_merges ? "true" : "false",
            fmt::format("{}, as the pre-tokenizer is that of {}", kind.ignore_merges, kind.name));
      out_.pre_tokenizer = kind.name;
      return {};
    }
    return json_.wrong(
        "pre_tokenizer", types.empty() ? "none" : printable(types),
        "the steps of SmolLM (Digits, ByteLevel), GPT-2 (ByteLevel), Qwen 2 or Llama 3 (Split, "
        "ByteLevel)");
  }

  Status read_post_processors() {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Step> all, steps("post_processor", "processors"));
    for (const Step& step : all) {
      if (step.type == "ByteLevel") continue;  // moves offsets alone
      if (step.type != "TemplateProcessing")
        return step.json.wrong("type", step.json.value()["type"], "TemplateProcessing or ByteLevel");
      KVFOLD_RETURN_IF_ERROR(read_template(step.json));
    }
    return {};
  }

  // "single": special tokens and the text's place, [{"SpecialToken": {"id": "<s>"}}, {"Sequence": ...}].
  Status read_template(const JsonObject& json) {
    KVFOLD_ASSIGN_OR_RETURN(const Json* single, json.array("single"));
    bool text_seen = false;
    for (size_t i = 0; i < single->size(); ++i) {
      const std::string name = fmt::format("single[{}]", i);
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject part, json.object_in((*single)[i], name));
      if (part.has("Sequence") && !text_seen) {
        text_seen = true;
        continue;
      }
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject special, part.object("SpecialToken"));
      KVFOLD_ASSIGN_OR_RETURN(const std::string_view id, special.string("id"));
      std::string& out = text_seen ? out_.end_token : out_.begin_token;
      if (!out.empty())
        return json.wrong("single", *single, "one token before the text, and one behind it, at most");
      out = id;
      KVFOLD_RETURN_IF_ERROR(read_template_id(json, id, text_seen ? out_.end_id : out_.begin_id));
    }
    if (!text_seen) return json.wrong("single", *single, "a Sequence among them");
    return {};
  }

  // "special_tokens": {"<s>": {"ids": [1]}}.
  static Status read_template_id(const JsonObject& json, std::string_view token, int64_t& out) {
    if (!json.has("special_tokens")) return {};
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject all, json.object("special_tokens"));
    if (!all.has(token)) return {};
    KVFOLD_ASSIGN_OR_RETURN(const JsonObject special, all.object(token));
    KVFOLD_ASSIGN_OR_RETURN(const Json* ids, special.array("ids"));
    const bool one = ids->size() == 1 && (*ids)[0].is_number_unsigned();
    if (!one || (*ids)[0].get<uint64_t>() >= static_cast<uint64_t>(kMostWidth))
      return special.wrong("ids", *ids, "one token id");
    out = (*ids)[0].get<int64_t>();
    return {};
  }

  // Tokens become text by undoing the steps before; a file that does something else besides is refused.
  Status read_decoders() {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<Step> all, steps("decoder", "decoders"));
    bool strips = false;
    for (const Step& step : all) {
      if (!out_.byte_fallback) {
        if (step.type != "ByteLevel")
          return step.json.wrong("type", step.json.value()["type"], "ByteLevel, as the pre-tokenizer");
        continue;
      }
      KVFOLD_ASSIGN_OR_RETURN(const bool strip, read_fallback_decoder(step));
      strips = strips || strip;
    }
    const bool prefix = out_.space_prefix != SpacePrefix::kNone;
    if (out_.byte_fallback && !all.empty() && strips != prefix)
      return json_.wrong(
          "decoder", strips ? "Strip of a space" : "none that strips a space",
          prefix ? "one, as a space is put before texts" : "none, as no space is put before texts");
    return {};
  }

  // One step of what undoes SentencePiece's spaces and bytes. Whether it takes a space from the text's start.
  static Result<bool> read_fallback_decoder(const Step& step) {
    if (step.type == "ByteFallback" || step.type == "Fuse") return false;
    if (step.type == "Replace") {
      KVFOLD_ASSIGN_OR_RETURN(const JsonObject pattern, step.json.object("pattern"));
      KVFOLD_RETURN_IF_ERROR(expect(pattern, "String", kLowerBar));
      KVFOLD_RETURN_IF_ERROR(expect(step.json, "content", " "));
      return false;
    }
    if (step.type == "Metaspace") {
      KVFOLD_RETURN_IF_ERROR(expect(step.json, "replacement", kLowerBar));
      KVFOLD_ASSIGN_OR_RETURN(const SpacePrefix prefix, prepend_scheme(step.json));
      return prefix != SpacePrefix::kNone;
    }
    if (step.type != "Strip")
      return step.json.wrong(
          "type", step.json.value()["type"],
          "Replace, ByteFallback, Fuse, Strip or Metaspace, as the model falls back to bytes");
    KVFOLD_RETURN_IF_ERROR(expect(step.json, "content", " "));
    KVFOLD_ASSIGN_OR_RETURN(const int64_t start, step.json.integer("start"));
    if (start < 0 || start > 1) return step.json.wrong("start", step.json.value()["start"], "0 or 1");
    KVFOLD_ASSIGN_OR_RETURN(const int64_t stop, step.json.integer("stop"));
    if (stop != 0) return step.json.wrong("stop", step.json.value()["stop"], "0");
    return start == 1;
  }

  const JsonObject& json_;
  TokenizerPipeline out_;
  bool nfc_ = false;
  bool replaces_spaces_ = false;
};

}  // namespace

Result<TokenizerPipeline> read_tokenizer_pipeline(const JsonObject& json) {
  return PipelineReader(json).read();
}

}  // namespace kvfold
