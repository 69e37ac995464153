// A trial: what is put into the cache, what is asked, and what to look for in the answer.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/session.h"
#include "engine/tokenizer/chat.h"

namespace kvfold {

// The source with the fact alone changed: what the cache would say if it said something else.
struct Twin {
  std::string source;
  std::vector<std::string> markers;
  std::string answer;
};

// Two continuations of one prefix of the answer that differ in the fact: "My name is" + "Lyra" or "Maya".
struct Contrast {
  std::string prefix;  // may be empty
  std::string marker, twin;
};

// Texts of answers have no space before them; framings that need one add it.
struct Trial {
  std::string id;                    // unique in its set
  std::string phase;                 // "2a"
  std::string family;                // "plan", "identity", ...
  std::string set;                   // "plan", "calibration" or "test"
  std::string item;                  // the unit of analysis: what several trials have in common, or the id
  std::string source;                // the text whose cache is transferred
  std::string target;                // the text that is answered
  std::vector<std::string> markers;  // words that show the source in the answer
  std::string answer;                // an answer that states the source's fact
  Contrast contrast;
  Twin twin;
  std::string mismatched;                     // id of the trial whose source is the unrelated one
  std::vector<std::string> decoys;            // words like the markers, in no source here
  std::string filler;                         // neutral text, longer than the source
  std::string mode, entity;                   // phase 2d; otherwise empty
  std::vector<std::string> truth_markers;     // words of the true answer, where the source's is another
  std::map<std::string, std::string> probes;  // other answers to score: "truth", or a mode
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
Result<Framing> parse_framing(std::string_view name);

// A text before the target, and its tokens.
struct SourceText {
  std::string text;
  std::vector<TokenId> ids;
};

// Two continuations that share their first `shared` tokens.
struct ContrastIds {
  std::vector<TokenId> marker, twin;
  size_t shared = 0;
};

struct FramedTrial {
  const Trial* trial = nullptr;
  Framing framing = Framing::kRaw;
  std::vector<TokenId> prefix;  // BOS where the model wants one: before everything, in every condition
  SourceText source, twin, mismatched;
  SourceText filler;  // of as many tokens as the source, or as near as the text allows
  std::string target_text;
  std::vector<TokenId> target;
  std::vector<TokenId> answer, twin_answer;  // as the answer's first tokens would be
  ContrastIds contrast;
  std::map<std::string, std::vector<TokenId>> probes;
  std::vector<TokenId> marker_tokens, decoy_tokens;  // first token of each word as it would begin the answer
};

// `mismatched` is the trial that this one's names. Errors: the framing needs a chat template and the model
// has none that is known; a text without tokens.
Result<FramedTrial> frame(const Trial& trial, const Trial& mismatched, Framing framing,
                          const Tokenizer& tokenizer);

}  // namespace kvfold
