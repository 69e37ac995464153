// Splitting text into the pieces within which byte pairs are merged.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/status.h"

namespace kvfold {

// What a named pre-tokenizer (tokenizer.ggml.pre) does, beyond splitting.
struct PreTokenizerTraits {
  bool nfc = false;            // text is brought to normal form C first
  bool ignore_merges = false;  // a piece that is a token as a whole is not merged
};

class PreTokenizer {
 public:
  // "smollm", "qwen2", "gpt-2", "llama-bpe". Errors: another name (the known ones are listed).
  static Result<std::shared_ptr<const PreTokenizer>> create(std::string_view name);
  virtual ~PreTokenizer() = default;

  const PreTokenizerTraits& traits() const { return traits_; }
  // Appends the pieces of `text` in order; they cover it. REQUIRES: text is valid UTF-8.
  virtual void split(std::string_view text, std::vector<std::string_view>& pieces) const = 0;

 protected:
  PreTokenizerTraits traits_;
};

// `text` in Unicode normal form C, as Hugging Face's tokenizers make it: by the tables of Unicode 9.
// REQUIRES: text is valid UTF-8.
std::string normalize_nfc(std::string_view text);

}  // namespace kvfold
