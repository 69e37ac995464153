// Chat templates. The four that the supported models use are written out; which one applies is read off the
// model's own Jinja template, and a template of no known family is refused.
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

// What happens where a conversation has no system message and the model's template would make one up.
enum class DefaultSystem { kAdd, kOmit };

class ChatTemplate {
 public:
  // Errors: no template in the file, or one of no known family.
  static Result<ChatTemplate> from(const VocabularySource& vocabulary);

  // The messages as one string of text with control tokens, without the BOS that encode() adds. With
  // `add_generation_prompt` it ends where the assistant's answer begins.
  // Errors: an unknown role, or an order of roles that the template does not allow.
  Result<std::string> render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                             DefaultSystem default_system = DefaultSystem::kAdd) const;
  std::string_view name() const;

 private:
  enum class Family { kChatMl, kZephyr, kLlama2 };
  ChatTemplate(Family family, std::string default_system, const VocabularySource& vocabulary);
  std::string render_chatml(std::span<const ChatMessage> messages, bool add_generation_prompt,
                            bool add_default) const;
  std::string render_zephyr(std::span<const ChatMessage> messages, bool add_generation_prompt) const;
  Result<std::string> render_llama2(std::span<const ChatMessage> messages) const;

  Family family_;
  std::string default_system_;  // ChatML only; empty: none
  std::string bos_, eos_;       // as text
};

}  // namespace kvfold
