// What Hugging Face `tokenizers` and Jinja gave for strings and conversations (tests/oracle/make_bpe.py and
// make_chat.py), against a vocabulary of ours.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/tokenizer.h"
#include "loaders/model_loader.h"

namespace kvfold::testing {

inline std::string data_path(const std::string& name) {
  return std::string(KVFOLD_SOURCE_DIR) + "/tests/data/" + name;
}

// The ids of all 500 strings, and the text of their ids again: of what the vocabulary has all bytes for, in
// the form that the tokenizer normalises to.
inline void expect_ids_of(const std::string& name, const std::string& path, bool lossless) {
  Result<LoadedVocabulary> loaded = load_vocabulary(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  auto tokenizer = Tokenizer::create(loaded->source, loaded->storage);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::ifstream lines(data_path("tokenizers/bpe.jsonl"));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto sample = nlohmann::json::parse(line);
    const auto text = sample.at("text").get<std::string>();
    const std::vector<TokenId> ids = (*tokenizer)->encode(text, {.add_bos = false});
    ASSERT_EQ(ids, sample.at("ids").at(name).get<std::vector<TokenId>>()) << text;
    if (lossless) {
      ASSERT_EQ((*tokenizer)->decode(ids), text);
    }
    // Token by token for one who watches, it is the same text.
    StreamDecoder stream(**tokenizer);
    std::string streamed;
    for (const TokenId id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    if (lossless) {
      ASSERT_EQ(streamed, text);
    }
  }
  EXPECT_EQ(count, 500);
}

inline nlohmann::json chat_samples() {
  std::ifstream file(data_path("chat.json"));
  return nlohmann::json::parse(file);
}

// All conversations of one entry of chat.json.
inline void expect_chats(const nlohmann::json& entry, const ChatTemplate& chat) {
  for (const auto& sample : entry.at("cases")) {
    std::vector<ChatMessage> messages;
    for (const auto& message : sample.at("messages"))
      messages.push_back({message.at("role").get<std::string>(), message.at("content").get<std::string>()});
    const Result<std::string> text = chat.render(messages, sample.at("generation").get<bool>());
    if (sample.at("text").is_null()) {
      EXPECT_FALSE(text.ok()) << sample.dump();
    } else {
      ASSERT_TRUE(text.ok()) << text.status().message() << sample.dump();
      EXPECT_EQ(*text, sample.at("text").get<std::string>()) << sample.dump();
    }
  }
}

}  // namespace kvfold::testing
