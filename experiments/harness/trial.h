// A trial: what is put into the cache, what is asked, and what to look for in the answer.
#pragma once

#include <string>
#include <vector>

#include "engine/session.h"
#include "engine/tokenizer/chat.h"

namespace kvfold {

struct Trial {
  std::string name;
  std::string source;                // the text whose cache is transferred
  std::string target;                // the text that is answered
  std::vector<std::string> markers;  // words that show the source in the answer
};

struct Experiment {
  std::string phase;     // "2a"
  std::string question;  // what the plan asks
  std::string reading;   // how to read the table
  std::vector<Trial> trials;
};

// How a trial's two texts are put to a model. The target's tokens are the same in every condition of a
// framing.
enum class Framing {
  kRaw,     // the texts as they are
  kQa,      // "<source>.\n" and "Question: <target>\nAnswer:"
  kChat,    // two user turns of the model's own template
  kSystem,  // the source as the system message, the target as the user's turn
};
inline constexpr Framing kFramings[] = {Framing::kRaw, Framing::kQa, Framing::kChat, Framing::kSystem};
const char* framing_name(Framing framing);

struct FramedTrial {
  const Trial* trial = nullptr;
  Framing framing = Framing::kRaw;
  std::string source_text, target_text;
  std::vector<TokenId> prefix;  // BOS where the model wants one: before everything, in every condition
  std::vector<TokenId> source, target;
};

// Errors: the framing needs a chat template and the model has none that is known; a text without tokens.
Result<FramedTrial> frame(const Trial& trial, Framing framing, const Tokenizer& tokenizer);

}  // namespace kvfold
