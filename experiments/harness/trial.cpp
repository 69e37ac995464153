#include "experiments/harness/trial.h"

#include <fmt/core.h>

#include <algorithm>

#include "engine/printable.h"

namespace kvfold {
namespace {

// A single turn of the model's template, without a system message of the template's own.
Result<std::string> turn(const ChatTemplate& chat, const char* role, const std::string& content,
                         bool answer_next) {
  const ChatMessage message{role, content};
  return chat.render(std::span(&message, 1), answer_next, DefaultSystem::kOmit);
}

// Puts the texts of one framing together.
class Framer {
 public:
  static Result<Framer> create(Framing framing, const Tokenizer& tokenizer) {
    Framer framer(framing, tokenizer);
    if (framing == Framing::kChat || framing == Framing::kSystem) {
      KVFOLD_ASSIGN_OR_RETURN(framer.chat_, ChatTemplate::from(tokenizer.source()));
    }
    return framer;
  }

  Result<SourceText> source(const std::string& text) const {
    SourceText out;
    switch (framing_) {
      case Framing::kRaw:
        out.text = text;
        break;
      case Framing::kQa:
        out.text = text + ".\n";
        break;
      case Framing::kChat: {
        KVFOLD_ASSIGN_OR_RETURN(out.text, turn(*chat_, "user", text, false));
        break;
      }
      case Framing::kSystem: {
        KVFOLD_ASSIGN_OR_RETURN(out.text, turn(*chat_, "system", text, false));
        break;
      }
    }
    out.ids = encode(out.text);
    return out;
  }

  Result<std::string> target(const std::string& text) const {
    if (framing_ == Framing::kRaw) return text;
    if (framing_ == Framing::kQa) return fmt::format("Question: {}\nAnswer:", text);
    return turn(*chat_, "user", text, true);
  }

  // An answer's tokens: it follows the target's text, or stands at the beginning of the assistant's turn.
  std::vector<TokenId> answer(const std::string& text) const {
    return encode(framing_ == Framing::kRaw || framing_ == Framing::kQa ? " " + text : text);
  }

  // The beginning of the filler that gives `count` tokens: whole words if any number of them does, else the
  // cut may fall within a word; the nearest if none does.
  Result<SourceText> filler(const std::string& text, size_t count) const {
    SourceText best;
    const auto distance = [&](const SourceText& x) {
      return x.ids.size() > count ? x.ids.size() - count : count - x.ids.size();
    };
    for (const bool whole_words : {true, false})
      for (size_t end = 1; end <= text.size(); ++end) {
        if (whole_words && end < text.size() && text[end] != ' ') continue;
        if (text[end - 1] == '.' || text[end - 1] == ' ') continue;
        KVFOLD_ASSIGN_OR_RETURN(SourceText framed, source(text.substr(0, end)));
        constexpr size_t kSlack = 4;
        if (framed.ids.size() > count + kSlack) break;
        if (best.ids.empty() || distance(framed) < distance(best)) best = std::move(framed);
        if (distance(best) == 0) return best;
      }
    return best;
  }

 private:
  Framer(Framing framing, const Tokenizer& tokenizer) : framing_(framing), tokenizer_(tokenizer) {}
  std::vector<TokenId> encode(const std::string& text) const {
    return tokenizer_.encode(text, {/*parse_special=*/true, /*add_bos=*/false});
  }

  Framing framing_;
  const Tokenizer& tokenizer_;
  std::optional<ChatTemplate> chat_;
};

ContrastIds frame_contrast(const Contrast& contrast, const Framer& framer) {
  const std::string before = contrast.prefix.empty() ? "" : contrast.prefix + " ";
  ContrastIds out{framer.answer(before + contrast.marker), framer.answer(before + contrast.twin), 0};
  const size_t most = std::min(out.marker.size(), out.twin.size());
  while (out.shared < most && out.marker[out.shared] == out.twin[out.shared]) ++out.shared;
  return out;
}

std::vector<TokenId> first_tokens(const std::vector<std::string>& words, const Framer& framer) {
  std::vector<TokenId> out;
  for (const std::string& word : words)
    if (const std::vector<TokenId> ids = framer.answer(word); !ids.empty()) out.push_back(ids[0]);
  return out;
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

Result<Framing> parse_framing(std::string_view name) {
  for (const Framing framing : kFramings)
    if (name == framing_name(framing)) return framing;
  return Status::error(fmt::format("framing '{}': expected raw, qa, chat or system", printable(name)));
}

Result<FramedTrial> frame(const Trial& trial, const Trial& mismatched, Framing framing,
                          const Tokenizer& tokenizer) {
  KVFOLD_ASSIGN_OR_RETURN(const Framer framer, Framer::create(framing, tokenizer));
  FramedTrial out;
  out.trial = &trial;
  out.framing = framing;
  if (tokenizer.source().add_bos) out.prefix = {tokenizer.source().bos};
  KVFOLD_ASSIGN_OR_RETURN(out.source, framer.source(trial.source));
  KVFOLD_ASSIGN_OR_RETURN(out.twin, framer.source(trial.twin.source));
  KVFOLD_ASSIGN_OR_RETURN(out.mismatched, framer.source(mismatched.source));
  KVFOLD_ASSIGN_OR_RETURN(out.filler, framer.filler(trial.filler, out.source.ids.size()));
  KVFOLD_ASSIGN_OR_RETURN(out.target_text, framer.target(trial.target));
  out.target = tokenizer.encode(out.target_text, {/*parse_special=*/true, /*add_bos=*/false});
  out.answer = framer.answer(trial.answer);
  out.twin_answer = framer.answer(trial.twin.answer);
  out.contrast = frame_contrast(trial.contrast, framer);
  for (const auto& [name, answer] : trial.probes) out.probes[name] = framer.answer(answer);
  out.marker_tokens = first_tokens(trial.markers, framer);
  out.decoy_tokens = first_tokens(trial.decoys, framer);
  for (const auto* ids : {&out.source.ids, &out.twin.ids, &out.mismatched.ids, &out.filler.ids, &out.target,
                          &out.answer, &out.twin_answer}) {
    if (ids->empty())
      return Status::error(fmt::format("trial '{}': a text has no tokens in the framing {}",
                                       printable(trial.id), framing_name(framing)));
  }
  return out;
}

}  // namespace kvfold
