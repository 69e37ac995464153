#include "experiments/harness/trial.h"

#include <fmt/core.h>

namespace kvfold {
namespace {

// A single turn of the model's template, without a system message of the template's own.
Result<std::string> turn(const ChatTemplate& chat, const char* role, const std::string& content,
                         bool answer_next) {
  const ChatMessage message{role, content};
  return chat.render(std::span(&message, 1), answer_next, DefaultSystem::kOmit);
}

Status frame_chat(const Trial& trial, const char* source_role, const Tokenizer& tokenizer, FramedTrial& out) {
  KVFOLD_ASSIGN_OR_RETURN(const ChatTemplate chat, ChatTemplate::from(tokenizer.source()));
  KVFOLD_ASSIGN_OR_RETURN(out.source_text, turn(chat, source_role, trial.source, false));
  KVFOLD_ASSIGN_OR_RETURN(out.target_text, turn(chat, "user", trial.target, true));
  return {};
}

}  // namespace

const char* framing_name(Framing framing) {
  switch (framing) {
    case Framing::kRaw:
      return "raw";
    case Framing::kQa:
      return "qa";
    case Framing::kChat:
      return "chat";
    case Framing::kSystem:
      break;
  }
  return "system";
}

Result<FramedTrial> frame(const Trial& trial, Framing framing, const Tokenizer& tokenizer) {
  FramedTrial out;
  out.trial = &trial;
  out.framing = framing;
  switch (framing) {
    case Framing::kRaw:
      out.source_text = trial.source;
      out.target_text = trial.target;
      break;
    case Framing::kQa:
      out.source_text = trial.source + ".\n";
      out.target_text = fmt::format("Question: {}\nAnswer:", trial.target);
      break;
    case Framing::kChat:
      KVFOLD_RETURN_IF_ERROR(frame_chat(trial, "user", tokenizer, out));
      break;
    case Framing::kSystem:
      KVFOLD_RETURN_IF_ERROR(frame_chat(trial, "system", tokenizer, out));
      break;
  }
  const EncodeOptions inner{/*parse_special=*/true, /*add_bos=*/false};
  if (tokenizer.source().add_bos) out.prefix = {tokenizer.source().bos};
  out.source = tokenizer.encode(out.source_text, inner);
  out.target = tokenizer.encode(out.target_text, inner);
  if (out.source.empty() || out.target.empty())
    return Status::error(
        fmt::format("trial '{}': source and target need at least one token each", trial.name));
  return out;
}

}  // namespace kvfold
