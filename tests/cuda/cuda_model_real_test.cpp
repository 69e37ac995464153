// The real model on the device: the CPU's greedy text, token for token, and phase 2a's plan case.
#include <gtest/gtest.h>

#include "engine/kv/ops.h"
#include "loaders/open.h"
#include "tests/cuda/tested_device.h"

namespace kvfold::testing {
namespace {

std::unique_ptr<Session> open_on(const std::string& backend) {
  OpenOptions options;
  options.backend = backend;
  options.session.cache_bytes = size_t{128} << 20;
  options.session.chunk = 64;
  Result<std::unique_ptr<Session>> session = open_session("smollm2-135m-instruct", options);
  EXPECT_TRUE(session.ok()) << session.status().message();
  if (!session.ok()) std::abort();
  return std::move(*session);
}

struct Text {
  std::vector<TokenId> ids;
  std::vector<float> logits;  // before the first of them
};

// Tokens are chosen where the logits are.
Text greedy(Session& session, KvCache& cache, const std::string& prompt, int count) {
  Text out;
  Sampler sampler({});
  const Result<std::vector<float>> logits = session.feed(cache, session.tokenizer().encode(prompt));
  EXPECT_TRUE(logits.ok()) << logits.status().message();
  out.logits = *logits;
  Result<TokenId> next = sampler.sample(*logits);
  while (next.ok() && static_cast<int>(out.ids.size()) < count) {
    out.ids.push_back(*next);
    if (session.tokenizer().is_end(*next)) break;
    next = session.feed(cache, std::span(&out.ids.back(), 1), sampler);
    EXPECT_TRUE(next.ok()) << next.status().message();
  }
  return out;
}

std::string text_of(const Session& session, const std::vector<TokenId>& ids) {
  std::string text;
  for (const TokenId id : ids) text += session.tokenizer().token_bytes(id);
  return text;
}

TEST(CudaModel, WritesTheCpusText) {
  std::vector<Text> texts;
  for (const char* backend : {"cpu", kDevice}) {
    const std::unique_ptr<Session> session = open_on(backend);
    KvCache cache = session->make_cache();
    texts.push_back(greedy(*session, cache, "The capital of France is", 16));
  }
  EXPECT_EQ(texts[1].ids, texts[0].ids);
  EXPECT_EQ(texts[1].logits, texts[0].logits);
  EXPECT_TRUE(no_reports());
}

TEST(CudaModel, PlansCaseOf2aSucceeds) {
  const std::unique_ptr<Session> session = open_on(kDevice);
  const std::string target = "Question: What is your name and where do you live?\nAnswer:";
  KvCache source = session->make_cache();
  const std::vector<TokenId> ids =
      session->tokenizer().encode("Hello, my name is Lyra and I live in Seattle.\n");
  ASSERT_TRUE(session->feed(source, ids).ok());
  KvCache empty = session->make_cache();
  const Result<KvSlice> slice = extract(source, Selection::all(source.shape(), source.size()));
  ASSERT_TRUE(slice.ok());
  Result<KvCache> transfer = insert(empty, *slice, 0, {});
  ASSERT_TRUE(transfer.ok());
  const std::string answer = text_of(*session, greedy(*session, *transfer, target, 12).ids);
  EXPECT_NE(answer.find("Lyra"), std::string::npos) << answer;
  EXPECT_NE(answer.find("Seattle"), std::string::npos) << answer;
}

}  // namespace
}  // namespace kvfold::testing
