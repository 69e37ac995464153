// The prompt sets: the plan's own words, what the families must be, and how a broken set is refused.
#include "experiments/harness/prompt_set.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "experiments/harness/metrics.h"
#include "experiments/harness/options.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

PromptSet load(const std::string& name) {
  Result<PromptSet> set = load_prompt_set(prompt_set_path(name));
  EXPECT_TRUE(set.ok()) << set.status().message();
  return std::move(*set);
}

TEST(PromptSets, HoldThePlansCasesWordForWord) {
  using Case = std::array<const char*, 3>;
  const std::map<std::string, std::vector<Case>> plan = {
      {"2a",
       {{"Hello, my name is Lyra and I live in Seattle", "What is your name and where do you live?",
         "Lyra"}}},
      {"2b",
       {{"The capital of France is Paris", "What is the capital of France?", "Paris"},
        {"Water boils at 100 degrees Celsius", "At what temperature does water boil?", "100"}}},
      {"2c",
       {{"The 47th president of Mars was Zephyr", "The capital of France is", "Mars"},
        {"Once upon a time in a kingdom of glass", "The chemical formula for water is", "kingdom"}}},
      {"2d",
       {{"The inventor of quantum bicycles was Dr. Helena Frost", "The inventor of the telephone was",
         "Helena"},
        {"Once upon a time in a kingdom of glass", "The inventor of the telephone was", "kingdom"}}}};
  for (const auto& [phase, cases] : plan) {
    std::vector<Case> found;
    const PromptSet set = load(phase);
    for (const Trial* trial : choose_trials(set, true, false, 0)) {
      ASSERT_LT(found.size(), cases.size());
      const Case& wanted = cases[found.size()];
      EXPECT_EQ(trial->source, wanted[0]);
      EXPECT_EQ(trial->target, wanted[1]);
      EXPECT_EQ(trial->markers[0], wanted[2]);
      found.push_back(wanted);
    }
    EXPECT_EQ(found.size(), cases.size()) << phase;
  }
}

TEST(PromptSets, FamiliesAreLargeHalvedAndDeranged) {
  for (const char* phase : {"2a", "2b", "2c", "2d"}) {
    const PromptSet set = load(phase);
    std::map<std::string, std::map<std::string, int>> counts;
    std::map<std::string, std::set<std::string>> sources_used;
    for (const Trial& trial : set.trials) {
      if (trial.set == "plan") continue;
      ++counts[trial.family][trial.set];
      const Trial& other = set.by_id(trial.mismatched);
      EXPECT_EQ(other.family, trial.family) << trial.id;
      EXPECT_EQ(other.set, trial.set) << trial.id << ": halves must not mix";
      EXPECT_TRUE(sources_used[trial.family].insert(other.id).second) << trial.id << ": no derangement";
      EXPECT_TRUE(find_markers(other.source, trial.markers).empty()) << trial.id;
      EXPECT_TRUE(find_markers(other.source, trial.twin.markers).empty()) << trial.id;
    }
    for (const auto& [family, halves] : counts) {
      EXPECT_GE(halves.at("calibration") + halves.at("test"), 100) << phase << " " << family;
      EXPECT_LE(std::abs(halves.at("calibration") - halves.at("test")), 2) << phase << " " << family;
    }
  }
}

TEST(PromptSets, TwinsDifferInTheFactAlone) {
  for (const char* phase : {"2a", "2b", "2c", "2d"})
    for (const Trial& trial : load(phase).trials) {
      EXPECT_NE(trial.twin.source, trial.source) << trial.id;
      // With each one's own words taken out, the two are the same statement.
      const auto without = [](std::string text, std::vector<std::string> words, const std::string& fact) {
        std::erase(words, fact);
        words.insert(words.begin(), fact);
        for (const std::string& word : words)
          if (const size_t at = text.rfind(word); at != std::string::npos) text.erase(at, word.size());
        return text;
      };
      EXPECT_EQ(without(trial.source, trial.markers, trial.contrast.marker),
                without(trial.twin.source, trial.twin.markers, trial.contrast.twin))
          << trial.id;
      for (const std::string& decoy : trial.decoys)
        EXPECT_TRUE(find_markers(trial.source + " " + trial.twin.source, {decoy}).empty())
            << trial.id << " " << decoy;
      EXPECT_EQ(find_markers(trial.answer, {trial.contrast.marker}).size(), 1U) << trial.id;
      EXPECT_EQ(find_markers(trial.twin.answer, {trial.contrast.twin}).size(), 1U) << trial.id;
    }
}

TEST(PromptSets, ModesAreCrossedWithEntities) {
  const PromptSet set = load("2d");
  std::map<std::string, std::set<std::string>> cells;
  for (const Trial* trial : choose_trials(set, false, true, 0))
    EXPECT_TRUE(cells[trial->item].insert(trial->mode + "/" + trial->entity).second);
  EXPECT_GE(cells.size(), 26U);
  for (const auto& [item, present] : cells) EXPECT_EQ(present.size(), 8U) << item;
}

TEST(PromptSets, BrokenOnesAreRefusedWithFileAndLine) {
  const TemporaryFolder folder;
  const std::string whole = TemporaryFolder::read(prompt_set_path("2a"));
  const std::string first = whole.substr(0, whole.find('\n') + 1);
  const auto refusal = [&](const std::string& text) {
    const Result<PromptSet> set = load_prompt_set(folder.write("set.jsonl", text));
    return set.ok() ? "accepted" : set.status().message();
  };
  EXPECT_NE(refusal(first).find("set.jsonl:1: key 'mismatched'"), std::string::npos) << refusal(first);
  EXPECT_NE(refusal(whole + first).find("that no other trial has"), std::string::npos);
  EXPECT_NE(refusal(whole + "{").find("not JSON"), std::string::npos);
  EXPECT_NE(refusal(whole + "[]\n").find("expected an object"), std::string::npos);
  std::string renamed = whole;
  renamed.replace(renamed.find("\"markers\""), 9, "\"marks\"");
  EXPECT_NE(refusal(renamed).find("set.jsonl:1:"), std::string::npos) << refusal(renamed);
  std::string retyped = whole;
  retyped.replace(retyped.find("\"decoys\": ["), 11, "\"decoys\": [7, ");
  EXPECT_NE(refusal(retyped).find("decoys"), std::string::npos);
  EXPECT_NE(refusal("").find("expected at least one"), std::string::npos);
  std::string repeated = whole;
  repeated.insert(1, "\"set\": \"test\", ");
  EXPECT_NE(refusal(repeated).find("set.jsonl:1: key 'set' stands twice"), std::string::npos);
  // What the file holds is shown as one short printable line.
  std::string unknown = whole;
  unknown.insert(1, "\"\x7F\\n\": 1, \"" + std::string(1000, 'k') + "\": 1, ");
  EXPECT_EQ(refusal(unknown).substr(refusal(unknown).find("/set.jsonl")),
            "/set.jsonl:1: key '" + std::string(80, 'k') + "...': found the number 1, expected no such key");
  std::string other = whole;
  other.replace(other.find("\"mismatched\": \"") + 15, 0, "\xC3\xA9\\u001b");
  EXPECT_NE(refusal(other).find("'mismatched': found the string '???"), std::string::npos) << refusal(other);
}

TEST(Framing, FillerHasTheSourcesLengthAndAnswersTheirPlace) {
  const TemporaryFolder folder;
  const std::unique_ptr<Session> session = tiny_session(folder);
  const PromptSet set = load("2a");
  const Trial& trial = set.trials[0];
  for (const Framing framing : kFramings) {
    const Result<FramedTrial> framed =
        frame(trial, set.by_id(trial.mismatched), framing, session->tokenizer());
    ASSERT_TRUE(framed.ok()) << framed.status().message();
    // Whole words of a vocabulary of bytes: at most a word of difference.
    EXPECT_NEAR(static_cast<double>(framed->filler.ids.size()),
                static_cast<double>(framed->source.ids.size()), 9);
    const bool space = framing == Framing::kRaw || framing == Framing::kQa;
    EXPECT_EQ(session->tokenizer().decode(framed->answer), (space ? " " : "") + trial.answer);
    EXPECT_LT(framed->contrast.shared, framed->contrast.marker.size());
    EXPECT_EQ(session->tokenizer().decode(std::span(framed->contrast.marker).first(framed->contrast.shared)),
              space ? " My name is " : "My name is ");
  }
}

}  // namespace
}  // namespace kvfold::testing
