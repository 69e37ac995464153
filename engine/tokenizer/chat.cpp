#include "engine/tokenizer/chat.h"

#include <fmt/core.h>

namespace kvfold {
namespace {

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// Without the white space around it that Python's str.strip() removes, as Jinja's templates call it.
std::string trim(std::string_view text) {
  static constexpr std::string_view kSpaces[] = {
      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1C",   "\x1D",   "\x1E",   "\x1F",   " ",
      "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
      "\u2007", "\u2008", "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view space : kSpaces) {
      if (text.starts_with(space)) {
        text.remove_prefix(space.size());
        again = true;
      } else if (text.ends_with(space)) {
        text.remove_suffix(space.size());
        again = true;
      }
    }
  }
  return std::string(text);
}

// The system message that a ChatML template writes by itself: the literal text between the system turn's head
// and its end. A Jinja source may hold its line breaks as they are or as \n.
std::string find_default_system(std::string_view jinja) {
  constexpr std::string_view kHead = "<|im_start|>system";
  for (size_t at = jinja.find(kHead); at != std::string_view::npos; at = jinja.find(kHead, at + 1)) {
    std::string_view rest = jinja.substr(at + kHead.size());
    if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with("\n")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const std::string_view message = rest.substr(0, rest.find("<|im_end|>"));
    // A quote or a brace means that the literal ended and an expression follows.
    if (message.size() < rest.size() && !message.empty() &&
        message.find_first_of("'\"{}") == std::string_view::npos)
      return std::string(message);
  }
  return "";
}

std::string token_text(const VocabularySource& vocabulary, TokenId id) {
  return id < 0 ? "" : std::string(vocabulary.tokens[id]);
}

}  // namespace

ChatTemplate::ChatTemplate(Family family, std::string default_system, const VocabularySource& vocabulary)
    : family_(family),
      default_system_(std::move(default_system)),
      bos_(token_text(vocabulary, vocabulary.bos)),
      eos_(token_text(vocabulary, vocabulary.eos)) {}

Result<ChatTemplate> ChatTemplate::from(const VocabularySource& vocabulary) {
  const std::string_view jinja = vocabulary.chat_template;
  if (jinja.empty()) return Status::error("the model has no chat template (tokenizer.chat_template)");
  if (contains(jinja, "<|im_start|>") && contains(jinja, "<|im_end|>"))
    return ChatTemplate(Family::kChatMl, find_default_system(jinja), vocabulary);
  if (contains(jinja, "<|user|>") && contains(jinja, "<|assistant|>") && contains(jinja, "eos_token"))
    return ChatTemplate(Family::kZephyr, "", vocabulary);
  if (contains(jinja, "[INST]") && contains(jinja, "<<SYS>>"))
    return ChatTemplate(Family::kLlama2, "", vocabulary);
  return Status::error("tokenizer.chat_template: of no known family; known are ChatML, Zephyr and Llama-2");
}

std::string_view ChatTemplate::name() const {
  switch (family_) {
    case Family::kChatMl:
      return "chatml";
    case Family::kZephyr:
      return "zephyr";
    case Family::kLlama2:
      break;
  }
  return "llama-2";
}

Result<std::string> ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                         DefaultSystem default_system) const {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant")
      return Status::error(
          fmt::format("chat message {}: found role '{}', expected system, user or assistant", i, role));
    if (role == "system" && i > 0)
      return Status::error(fmt::format("chat message {}: a system message comes first", i));
  }
  switch (family_) {
    case Family::kChatMl:
      return render_chatml(messages, add_generation_prompt, default_system == DefaultSystem::kAdd);
    case Family::kZephyr:
      return render_zephyr(messages, add_generation_prompt);
    case Family::kLlama2:
      break;
  }
  return render_llama2(messages);
}

std::string ChatTemplate::render_chatml(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                        bool add_default) const {
  std::string out;
  const bool has_system = !messages.empty() && messages[0].role == "system";
  if (!has_system && add_default && !default_system_.empty())
    out += fmt::format("<|im_start|>system\n{}<|im_end|>\n", default_system_);
  for (const ChatMessage& m : messages)
    out += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", m.role, m.content);
  if (add_generation_prompt) out += "<|im_start|>assistant\n";
  return out;
}

std::string ChatTemplate::render_zephyr(std::span<const ChatMessage> messages,
                                        bool add_generation_prompt) const {
  std::string out;
  for (const ChatMessage& m : messages) out += fmt::format("<|{}|>\n{}{}\n", m.role, m.content, eos_);
  if (add_generation_prompt) out += "<|assistant|>\n";
  return out;
}

// [INST] opens the user's turn and [/INST] closes it, so an answer begins there with or without a generation
// prompt.
Result<std::string> ChatTemplate::render_llama2(std::span<const ChatMessage> messages) const {
  std::string out;
  std::string system;
  bool user_next = true;
  bool first = true;
  for (const ChatMessage& m : messages) {
    if (m.role == "system") {
      system = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n", m.content);
      continue;
    }
    if ((m.role == "user") != user_next)
      return Status::error("llama-2 chat: user and assistant must take turns, user first");
    if (user_next) {
      out += fmt::format("{}[INST] {} [/INST]", first ? "" : bos_, trim(system + m.content));
      system.clear();
      first = false;
    } else {
      out += fmt::format(" {} {}", trim(m.content), eos_);
    }
    user_next = !user_next;
  }
  // A system message alone is a turn that the user's words have yet to finish.
  if (!system.empty()) out += "[INST] " + system;
  return out;
}

}  // namespace kvfold
