// Both models against another program's numbers: tests/oracle/reference.py computed them from the same files
// in f32, and tests/oracle/make_reference.py says how they are laid out.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/kv/ops.h"
#include "engine/sampler.h"
#include "experiments/harness/conditions.h"
#include "experiments/harness/metrics.h"
#include "loaders/open.h"
#include "tests/npy.h"
#include "tests/temporary.h"

namespace kvfold {
namespace {

// An element of <model>.top.npy.
struct Candidate {
  TokenId id;
  float log_probability;
};
static_assert(sizeof(Candidate) == 8);

std::string data_path(const std::string& name) {
  return std::string(KVFOLD_SOURCE_DIR) + "/tests/data/reference/" + name;
}

// KL(reference || ours) in nats, with all tokens but the reference's most probable ones taken as one outcome.
double kl_from(std::span<const Candidate> reference, std::span<const float> logits) {
  const TokenId best = reference[0].id;
  const double log_sum = static_cast<double>(logits[best]) - log_probability(logits, best);
  double kl = 0, rest_p = 1, rest_q = 1;
  for (const Candidate& candidate : reference) {
    const double log_p = candidate.log_probability;
    const double log_q = static_cast<double>(logits[candidate.id]) - log_sum;
    kl += std::exp(log_p) * (log_p - log_q);
    rest_p -= std::exp(log_p);
    rest_q -= std::exp(log_q);
  }
  if (rest_p > 0 && rest_q > 0) kl += rest_p * std::log(rest_p / rest_q);
  return kl;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// How far a precision may be from f32 all the way.
struct Bounds {
  double median_kl, text_nll;  // over the positions of text.txt; its mean negative log-likelihood
  double kl, logit;            // after a prompt: of the distribution, of any logit
  double margin;               // a greedy choice with a smaller lead over the second may differ
};

struct Setting {
  const char* name;
  const char* model;
  Precision precision;
  CacheType cache_type;
  Bounds bounds;
};
void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }

class RealModel : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    const std::string model = GetParam().model;
    OpenOptions options;
    options.cpu.precision = GetParam().precision;
    options.session.cache_type = GetParam().cache_type;
    auto opened = open_session(model, options);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    session_ = std::move(*opened);
    std::ifstream file(data_path(model + ".json"));
    reference_ = nlohmann::json::parse(file);
    top_ = testing::read_npy<Candidate>(data_path(model + ".top.npy"));
    every_ = testing::read_npy<float>(data_path(model + ".every.npy"));
    text_ids_ = reference_["text"]["ids"].get<std::vector<TokenId>>();
    ASSERT_EQ(top_.size() % rows(), 0U);
  }

  size_t rows() const { return text_ids_.size() + reference_["continuations"].size(); }
  std::span<const Candidate> top(size_t row) const {
    const size_t columns = top_.size() / rows();
    return std::span(top_).subspan(row * columns, columns);
  }
  size_t index_of(const std::string& name) const {
    const auto& all = reference_["continuations"];
    return static_cast<size_t>(std::ranges::find_if(all, [&](const auto& c) { return c["name"] == name; }) -
                               all.begin());
  }

  // One of the reference's continuations, to be done again.
  struct Run {
    std::string name;
    KvCache cache;
    std::vector<TokenId> tokens;  // to be fed next
    std::vector<TokenId> ids = {};
    std::vector<float> first_logits = {};
  };

  // Continues all runs greedily as one batch, past any end token, for as many steps as the reference.
  void continue_all(std::vector<Run>& runs) {
    const size_t steps = reference_["continuations"][0]["greedy"].size();
    for (size_t step = 0; step < steps; ++step) {
      std::vector<Feed> feeds;
      for (Run& run : runs) feeds.push_back({&run.cache, run.tokens, Wanted::kLast});
      std::vector<TokenId> next(runs.size());
      const Status status = session_->feed(feeds, [&](int feed, int, std::span<const float> logits) {
        const auto at = static_cast<size_t>(feed);
        next[at] = argmax(logits);
        if (step == 0) runs[at].first_logits.assign(logits.begin(), logits.end());
      });
      ASSERT_TRUE(status.ok()) << status.message();
      for (size_t i = 0; i < runs.size(); ++i) {
        runs[i].ids.push_back(next[i]);
        runs[i].tokens = {next[i]};
      }
    }
  }

  // The choices are the reference's up to the first that is not clear, and so is the distribution they began
  // with.
  void expect_alike(const Run& run) {
    const size_t index = index_of(run.name);
    const auto& expected = reference_["continuations"][index];
    size_t step = 0;
    while (step < run.ids.size() && expected["margins"][step].get<double>() > GetParam().bounds.margin) {
      ASSERT_EQ(run.ids[step], expected["greedy"][step].get<TokenId>()) << run.name << ", step " << step;
      ++step;
    }
    const double kl = kl_from(top(text_ids_.size() + index), run.first_logits);
    EXPECT_LT(kl, GetParam().bounds.kl) << run.name;
    record(run.name + "_steps", static_cast<double>(step));
    record(run.name + "_kl", kl);
  }

  // For the report of --gtest_output: what the bounds were set by.
  void record(const std::string& what, double value) { RecordProperty(what, fmt::format("{:.3g}", value)); }

  std::unique_ptr<Session> session_;
  nlohmann::json reference_;
  std::vector<Candidate> top_;
  std::vector<float> every_;
  std::vector<TokenId> text_ids_;
};

TEST_P(RealModel, ScoresTheTextAlike) {
  const std::string text = testing::TemporaryFolder::read(data_path("text.txt"));
  ASSERT_EQ(session_->tokenizer().encode(text), text_ids_);
  EXPECT_EQ(session_->tokenizer().decode(text_ids_), text);

  KvCache cache = session_->make_cache();
  std::vector<double> kl;
  double nll = 0;
  const Feed feed{&cache, text_ids_, Wanted::kAll};
  const Status status =
      session_->feed(std::span(&feed, 1), [&](int, int token, std::span<const float> logits) {
        const auto at = static_cast<size_t>(token);
        kl.push_back(kl_from(top(at), logits));
        if (at + 1 < text_ids_.size()) nll -= log_probability(logits, text_ids_[at + 1]);
      });
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(kl.size(), text_ids_.size());
  nll /= static_cast<double>(text_ids_.size() - 1);
  const double expected = reference_["text"]["mean_nll"].get<double>();
  EXPECT_LT(median(kl), GetParam().bounds.median_kl);
  EXPECT_NEAR(nll, expected, GetParam().bounds.text_nll);
  record("median_kl", median(kl));
  record("nll_off", nll - expected);
}

// A context moved by +1000 together with what is fed behind it is the same context: RoPE sees distances
// alone.
TEST_P(RealModel, MovedContextMeansTheSame) {
  const size_t context = std::min<size_t>(48, text_ids_.size() / 2);
  const std::span<const TokenId> rest = std::span(text_ids_).subspan(context, 16);
  KvCache cache = session_->make_cache();
  const Feed before{&cache, std::span(text_ids_).first(context), Wanted::kNone};
  ASSERT_TRUE(session_->feed(std::span(&before, 1), {}).ok());
  auto moved = shift(cache, Selection::all(cache.shape(), cache.size()).rows, 1000);
  ASSERT_TRUE(moved.ok()) << moved.status().message();
  ASSERT_EQ(moved->next_position(), cache.next_position() + 1000);
  std::vector<std::vector<float>> logits(2 * rest.size());
  const Feed both[] = {{&cache, rest, Wanted::kAll}, {&*moved, rest, Wanted::kAll}};
  const Status status = session_->feed(both, [&](int feed, int token, std::span<const float> row) {
    logits[feed * rest.size() + static_cast<size_t>(token)].assign(row.begin(), row.end());
  });
  ASSERT_TRUE(status.ok()) << status.message();
  double worst = 0;
  for (size_t t = 0; t < rest.size(); ++t) {
    double kl = 0;
    const double plain_sum = log_probability(logits[t], 0) - logits[t][0];
    const double moved_sum = log_probability(logits[rest.size() + t], 0) - logits[rest.size() + t][0];
    for (size_t i = 0; i < logits[t].size(); ++i) {
      const double log_p = logits[t][i] + plain_sum;
      kl += std::exp(log_p) * (log_p - (logits[rest.size() + t][i] + moved_sum));
    }
    worst = std::max(worst, kl);
  }
  const bool exact = GetParam().precision == Precision::kExact;
  EXPECT_LT(worst, exact ? 1e-5 : 1e-2);
  record("moved_kl", worst);
}

TEST_P(RealModel, ContinuesPromptsAlike) {
  std::vector<Run> runs;
  for (const auto& prompt : reference_["continuations"]) {
    if (!prompt.contains("prompt")) continue;
    const auto ids = prompt["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ(session_->tokenizer().encode(prompt["prompt"].get<std::string>()), ids) << prompt["name"];
    runs.push_back({prompt["name"].get<std::string>(), session_->make_cache(), ids});
  }
  ASSERT_NO_FATAL_FAILURE(continue_all(runs));

  const auto stride = reference_["stride"].get<size_t>();
  const size_t sampled = (static_cast<size_t>(session_->model().config().vocab_size) + stride - 1) / stride;
  ASSERT_EQ(every_.size(), runs.size() * sampled);
  double worst = 0;
  for (size_t r = 0; r < runs.size(); ++r) {
    expect_alike(runs[r]);
    for (size_t i = 0; i < sampled; ++i) {
      const double off = static_cast<double>(runs[r].first_logits[i * stride]) - every_[r * sampled + i];
      worst = std::max(worst, std::fabs(off));
    }
  }
  EXPECT_LT(worst, GetParam().bounds.logit);
  record("logit", worst);
}

// Phase 2a by the harness's own framing and conditions.
TEST_P(RealModel, CarriesTheSourceOverAlike) {
  Trial trial;
  trial.id = "identity";
  trial.source = "Hello, my name is Lyra and I live in Seattle";
  trial.target = "What is your name and where do you live?";
  trial.markers = {"Lyra", "Seattle"};
  trial.answer = "My name is Lyra and I live in Seattle.";
  trial.contrast = {"My name is", "Lyra", "Nora"};
  trial.twin = {"Hello, my name is Nora and I live in Boston",
                {"Nora", "Boston"},
                "My name is Nora and I live in Boston."};
  trial.filler = "The weather was mild that day, and the road was quiet until the evening came.";
  const auto framed = frame(trial, trial, Framing::kQa, session_->tokenizer());
  ASSERT_TRUE(framed.ok()) << framed.status().message();
  EXPECT_EQ(framed->source.ids, reference_["transfer"]["source"].get<std::vector<TokenId>>());
  EXPECT_EQ(framed->target, reference_["transfer"]["target"].get<std::vector<TokenId>>());
  const auto conditions = build_conditions(*session_, std::span(&*framed, 1), /*seed=*/1);
  ASSERT_TRUE(conditions.ok()) << conditions.status().message();

  const auto cache_of = [&](Condition wanted) {
    return std::ranges::find(conditions->front(), wanted, &ConditionCache::condition)->cache.fork();
  };
  const KvCache baseline = cache_of(Condition::kBaseline);
  const KvCache transfer = cache_of(Condition::kTransfer);
  // The same source before the target's rows of the baseline, which never saw it and all move.
  const int source_rows = static_cast<int>(framed->source.ids.size());
  const auto source = extract(transfer, Selection::all(transfer.shape(), source_rows));
  ASSERT_TRUE(source.ok()) << source.status().message();
  const auto moved = insert(baseline, *source, 0, {});
  ASSERT_TRUE(moved.ok()) << moved.status().message();

  const std::vector<TokenId> last = {framed->target.back()};
  std::vector<Run> runs;
  runs.push_back({"baseline", baseline.fork(), last});
  runs.push_back({"transfer", transfer.fork(), last});
  runs.push_back({"moved", moved->fork(), last});
  ASSERT_NO_FATAL_FAILURE(continue_all(runs));
  for (const Run& run : runs) expect_alike(run);
  const auto found = [&](const Run& run) {
    return find_markers(session_->tokenizer().decode(run.ids), trial.markers);
  };
  EXPECT_TRUE(found(runs[0]).empty());
  EXPECT_EQ(found(runs[1]), trial.markers);
}

// Observed with an f32 cache, the worse of the two models: median KL 3.5e-12, NLL off by 5.8e-7; KL 1.1e-11,
// a logit off by 4.0e-5; all 288 steps the same. (With an f16 cache: 6.9e-7, 1.9e-4, 6.6e-6, 0.041, all the
// same.) The least margin of any step is 0.0071: every one is compared.
constexpr Bounds kExact = {.median_kl = 1e-9, .text_nll = 1e-5, .kl = 1e-9, .logit = 5e-4, .margin = 0.005};
// Observed: median KL 1.8e-3, NLL off by 5.8e-3; KL 0.0101, logit 1.05. Of six continuations, five leave the
// reference's, the clearest choice with a margin of 0.27.
constexpr Bounds kSmolLM2Int8 = {.median_kl = 2e-3, .text_nll = 0.01, .kl = 0.02, .logit = 2, .margin = 0.5};
// Observed: median KL 3.6e-4, NLL off by 1.9e-3; KL 2.7e-3, logit 0.46; all 144 steps the same.
constexpr Bounds kQwenInt8 = {.median_kl = 1e-3, .text_nll = 0.005, .kl = 0.01, .logit = 1, .margin = 0.25};

std::string name_of(const ::testing::TestParamInfo<Setting>& setting) { return setting.param.name; }

INSTANTIATE_TEST_SUITE_P(
    All, RealModel,
    ::testing::Values(
        Setting{"SmolLM2Exact", "smollm2-135m-instruct", Precision::kExact, CacheType::kF32, kExact},
        Setting{"SmolLM2Int8", "smollm2-135m-instruct", Precision::kInt8, CacheType::kF16, kSmolLM2Int8},
        Setting{"QwenExact", "qwen2.5-coder-0.5b-instruct", Precision::kExact, CacheType::kF32, kExact},
        Setting{"QwenInt8", "qwen2.5-coder-0.5b-instruct", Precision::kInt8, CacheType::kF16, kQwenInt8}),
    name_of);

}  // namespace
}  // namespace kvfold
