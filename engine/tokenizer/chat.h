// Chat templates. The four that the supported models use are written out; which one applies is read off the model's
// own Jinja template, and a template of no known family is refused.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"

namespace kvfold {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  // Errors: no template in the file, or one of no known family.
  static Result<ChatTemplate> from(const VocabularySource& vocabulary);

  // The messages as one string of text with control tokens. With `add_generation_prompt` it ends where the
  // assistant's answer begins. A default system message is added exactly where the model's own template adds one.
  // Errors: an unknown role, or an order of roles that the template does not allow.
  Result<std::string> render(std::span<const ChatMessage> messages, bool add_generation_prompt) const;
  std::string_view name() const;

 private:
  enum class Family { kChatMl, kZephyr, kLlama2 };
  ChatTemplate(Family family, std::string default_system) : family_(family), default_system_(std::move(default_system)) {}
  Family family_;
  std::string default_system_;  // ChatML only; empty: none
};

}  // namespace kvfold
