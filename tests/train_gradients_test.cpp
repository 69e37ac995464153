// The way back through the receiver: each operation against central differences, and the whole model against
// PyTorch's gradients (tests/oracle/make_gradients.py).
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "engine/random.h"
#include "engine/train/receiver.h"
#include "kernels/formats/formats.h"
#include "loaders/model_loader.h"
#include "tests/npy.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

std::vector<float> gaussians(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(count);
  for (float& x : out) x = static_cast<float>(random.gaussian());
  return out;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// The largest difference, as a share of the largest magnitude, between a gradient and central differences of
// `value` along every coordinate of x.
double error_of(const std::vector<float>& gradient, std::vector<float> x,
                const std::function<double(const std::vector<float>&)>& value) {
  constexpr float kStep = 4e-3F;
  double difference = 0, largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float before = x[i];
    x[i] = before + kStep;
    const double above = value(x);
    x[i] = before - kStep;
    const double below = value(x);
    x[i] = before;
    const double expected = (above - below) / (2.0 * kStep);
    difference = std::max(difference, std::abs(expected - gradient[i]));
    largest = std::max(largest, std::abs(expected));
  }
  return difference / largest;
}

const CpuKernels& kernels() { return *select_cpu_kernels(); }

TEST(Gradients, RmsNorm) {
  constexpr int kRows = 3, kColumns = 37;
  const std::vector<float> x = gaussians(kRows * kColumns, 1);
  const std::vector<float> weight = gaussians(kColumns, 2);
  const std::vector<float> out_gradient = gaussians(x.size(), 3);
  const auto value = [&](const std::vector<float>& at) {
    std::vector<float> y(at.size());
    for (int r = 0; r < kRows; ++r)
      kernels().rms_norm(&at[r * kColumns], weight.data(), kColumns, 1e-3F, &y[r * kColumns]);
    return dot(y, out_gradient);
  };
  std::vector<float> gradient(x.size());
  rms_norm_gradient(x.data(), weight.data(), kRows, kColumns, 1e-3F, out_gradient.data(), false,
                    gradient.data());
  EXPECT_LT(error_of(gradient, x, value), 2e-4);  // observed: 5e-5
  std::vector<float> added = x;
  rms_norm_gradient(x.data(), weight.data(), kRows, kColumns, 1e-3F, out_gradient.data(), true, added.data());
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(added[i], x[i] + gradient[i]);
}

TEST(Gradients, SwiGlu) {
  const std::vector<float> gate = gaussians(50, 1);
  const std::vector<float> up = gaussians(50, 2);
  const std::vector<float> out_gradient = gaussians(50, 3);
  const auto value = [&](const std::vector<float>& g, const std::vector<float>& u) {
    std::vector<float> y(g.size());
    kernels().swiglu(g.data(), u.data(), 50, y.data());
    return dot(y, out_gradient);
  };
  std::vector<float> to_gate = gate;
  std::vector<float> to_up = up;
  kernels().swiglu_gradient(out_gradient.data(), 50, to_gate.data(), to_up.data());
  EXPECT_LT(error_of(to_gate, gate, [&](const auto& g) { return value(g, up); }),
            2e-4);  // observed: 8e-6, at most
  EXPECT_LT(error_of(to_up, up, [&](const auto& u) { return value(gate, u); }), 2e-4);
}

TEST(Gradients, CrossEntropy) {
  const std::vector<float> logits = gaussians(40, 1);
  const auto value = [&](const std::vector<float>& at) {
    std::vector<float> copy = at;
    return 0.7 * cross_entropy(kernels(), copy.data(), 40, 7, 1);
  };
  std::vector<float> gradient = logits;
  cross_entropy(kernels(), gradient.data(), 40, 7, 0.7F);
  EXPECT_LT(error_of(gradient, logits, value), 5e-4);  // observed: 3e-5
}

TEST(Gradients, RopeUndoesItself) {
  for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalfSplit}) {
    ModelConfig config;
    config.rotary_dim = 12;
    config.rope_base = 1e4F;
    config.rope_pairing = pairing;
    const RopeTables tables(config);
    const std::vector<float> x = gaussians(12, 1);
    const std::vector<float> out_gradient = gaussians(12, 2);
    std::vector<float> gradient = out_gradient;
    turn(tables.view(), 77, true, gradient.data());
    const auto value = [&](const std::vector<float>& at) {
      std::vector<float> y = at;
      turn(tables.view(), 77, false, y.data());
      return dot(y, out_gradient);
    };
    EXPECT_LT(error_of(gradient, x, value), 2e-4);  // observed: 2e-5
  }
}

TEST(Gradients, Attention) {
  constexpr int kContext = 4, kTokens = 5, kHeads = 3, kDim = 8, kRows = kContext + kTokens;
  const std::vector<float> keys = gaussians(kRows * kDim, 1);
  const std::vector<float> values = gaussians(kRows * kDim, 2);
  const std::vector<float> q = gaussians(kTokens * kHeads * kDim, 3);
  const std::vector<float> out_gradient = gaussians(q.size(), 4);
  std::vector<float> weights(kHeads * kTokens * kRows);
  GemmScratch scratch;
  const auto group = [&](const std::vector<float>& k, const std::vector<float>& v,
                         const std::vector<float>& x) {
    return AttentionGroup{kContext, kTokens,  kHeads,        kDim,          k.data(),
                          v.data(), x.data(), kHeads * kDim, weights.data()};
  };
  const auto value = [&](const std::vector<float>& k, const std::vector<float>& v,
                         const std::vector<float>& x) {
    std::vector<float> out(x.size());
    attend(kernels(), scratch, group(k, v, x), out.data());
    return dot(out, out_gradient);
  };
  value(keys, values, q);
  std::vector<float> to_keys(keys.size()), to_values(values.size()), to_q(q.size()), memory;
  attend_gradient(kernels(), scratch, group(keys, values, q),
                  {out_gradient.data(), to_keys.data(), to_values.data(), to_q.data()}, memory);
  EXPECT_LT(error_of(to_keys, keys, [&](const auto& x) { return value(x, values, q); }),
            5e-4);  // observed: 5e-5
  EXPECT_LT(error_of(to_values, values, [&](const auto& x) { return value(keys, x, q); }), 5e-4);
  EXPECT_LT(error_of(to_q, q, [&](const auto& x) { return value(keys, values, x); }), 5e-4);
}

// ---- a whole model ----

const std::string kData = std::string(KVFOLD_SOURCE_DIR) + "/tests/data/checkpoints/";

struct Fixture {
  ModelSource source;
  std::vector<TokenId> tokens;
  double loss;
  std::vector<float> rows, gradients;
  int context() const { return static_cast<int>(rows.size()) / width(); }
  int width() const { return 2 * source.config.layers * source.config.kv_heads * source.config.head_dim; }
};

Fixture load(const std::string& name) {
  const std::string folder = kData + name;
  Result<ModelSource> source = load_model_source(folder);
  EXPECT_TRUE(source.ok()) << source.status().message();
  const auto reading = nlohmann::json::parse(TemporaryFolder::read(folder + "/reading.json"));
  return {std::move(*source), reading["tokens"].get<std::vector<TokenId>>(), reading["loss"],
          read_npy<float>(folder + "/rows.npy"), read_npy<float>(folder + "/gradients.npy")};
}

double difference(const std::vector<float>& ours, const std::vector<float>& reference) {
  double most = 0, largest = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(ours[i]) - reference[i]));
    largest = std::max(largest, std::abs(static_cast<double>(reference[i])));
  }
  return most / largest;
}

class WholeModel : public ::testing::TestWithParam<const char*> {};

TEST_P(WholeModel, GivesTheGradientsOfPyTorch) {
  const Fixture fixture = load(GetParam());
  ASSERT_FALSE(fixture.gradients.empty());
  ThreadPool pool(2);
  Gemm gemm(pool, kernels());
  const auto receiver = Receiver::create(fixture.source, gemm, Receiver::Weights::kAsMet);
  std::vector<float> gradient(fixture.rows.size());
  Reading reading = {fixture.rows.data(), fixture.context(), fixture.tokens, gradient.data()};
  const Result<double> loss = receiver->read({&reading, 1});
  ASSERT_TRUE(loss.ok()) << loss.status().message();
  EXPECT_NEAR(*loss, fixture.loss, 1e-5 * fixture.loss);     // observed: at most 2e-7 of it
  EXPECT_LT(difference(gradient, fixture.gradients), 2e-5);  // observed: at most 3e-6
}

std::string name_of(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::ranges::replace(name, '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(, WholeModel,
                         ::testing::Values("llama-32-4", "llama-15-5-tied", "llama-9-3-tied",
                                           "qwen2-14-2-tied", "llama-1kv-48", "llama-bias", "mistral-128",
                                           "qwen2-all-heads", "qwen3-48", "qwen3-128-tied"),
                         name_of);

// A reading in a batch, with any threads and kernels, is the reading alone.
TEST(Receiver, BatchThreadsAndKernelsDoNotShow) {
  const Fixture fixture = load("qwen2-14-2-tied");
  const int context = fixture.context();
  std::vector<float> reference;
  for (const CpuKernels* table : cpu_kernel_tables()) {
    if (!table->supported()) continue;
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      Gemm gemm(pool, *table);
      // Where weights are decoded does not show either.
      const auto weights = threads == 1 ? Receiver::Weights::kAsMet : Receiver::Weights::kOnce;
      const auto receiver = Receiver::create(fixture.source, gemm, weights);
      const size_t size = fixture.rows.size();
      std::vector<float> gradients(2 * size);
      const std::span<const TokenId> tokens = fixture.tokens;
      // The second one has fewer rows and tokens, and a shorter life in the mean.
      Reading both[] = {
          {fixture.rows.data(), context, tokens, gradients.data()},
          {fixture.rows.data() + fixture.width(), context - 1, tokens.first(4), &gradients[size]}};
      ASSERT_TRUE(receiver->read(both).ok());
      if (reference.empty()) reference = gradients;
      EXPECT_EQ(gradients, reference) << table->name << ", " << threads << " threads";
      const double batched = both[1].nll;
      std::vector<float> alone(size);
      both[1].gradient = alone.data();
      ASSERT_TRUE(receiver->read({&both[1], 1}).ok());
      EXPECT_EQ(both[1].nll, batched);
      // The mean over 8 + 3 tokens became one over 3.
      const double scale = 11.0 / 3.0;
      for (size_t i = 0; i < alone.size() - fixture.width(); ++i)
        ASSERT_NEAR(alone[i], scale * gradients[size + i], 1e-5) << i;  // observed: 9e-8
    }
  }
}

// Log-probabilities [tokens][vocabulary] in f64, from what gives the logits.
std::vector<double> log_probabilities(const Fixture& fixture, const std::vector<float>& states) {
  const MatrixView& w = fixture.source.output;
  const size_t width = static_cast<size_t>(w.columns);
  std::vector<float> weights(static_cast<size_t>(w.rows) * width);
  format_info(w.type).decode(w.data, weights.data(), weights.size());
  std::vector<double> out;
  for (size_t t = 0; t < states.size() / width; ++t) {
    double sum = 0;
    for (int64_t v = 0; v < w.rows; ++v) {
      double logit = 0;
      for (size_t i = 0; i < width; ++i)
        logit += static_cast<double>(states[t * width + i]) * weights[v * width + i];
      out.push_back(logit);
      sum += std::exp(logit);
    }
    for (size_t i = out.size() - w.rows; i < out.size(); ++i) out[i] -= std::log(sum);
  }
  return out;
}

// The loss with a teacher is the cross-entropy with its distribution: against central differences.
TEST(Receiver, LearnsFromATeacher) {
  const Fixture fixture = load("qwen2-14-2-tied");
  ThreadPool pool(2);
  Gemm gemm(pool, kernels());
  const auto receiver = Receiver::create(fixture.source, gemm, Receiver::Weights::kAsMet);
  const size_t scored = fixture.tokens.size() - 1;
  const size_t states_size = scored * static_cast<size_t>(fixture.source.config.model_dim);
  const auto read = [&](const std::vector<float>& rows, const float* teacher, float share, float* gradient) {
    std::vector<float> states(states_size);
    Reading reading{rows.data(), fixture.context(), fixture.tokens, gradient};
    reading.states = states.data();
    reading.teacher = teacher;
    EXPECT_TRUE(receiver->read({&reading, 1}, share).ok());
    return states;
  };
  std::vector<float> others = fixture.rows;
  std::ranges::reverse(others);
  const std::vector<float> teacher = read(others, nullptr, 0, nullptr);
  const std::vector<double> wanted = log_probabilities(fixture, teacher);
  const auto value = [&](const std::vector<float>& rows) {
    const std::vector<double> ours = log_probabilities(fixture, read(rows, nullptr, 0, nullptr));
    double sum = 0;
    for (size_t i = 0; i < ours.size(); ++i) sum -= std::exp(wanted[i]) * ours[i];
    return sum / static_cast<double>(scored);
  };
  std::vector<float> gradient(fixture.rows.size());
  read(fixture.rows, teacher.data(), 1, gradient.data());
  EXPECT_LT(error_of(gradient, fixture.rows, value), 2e-3);  // observed: 6e-4, the differences' own

  // Of a share, the mix of both; of itself as its own teacher, none.
  std::vector<float> mixed(gradient.size());
  read(fixture.rows, teacher.data(), 0.25F, mixed.data());
  for (size_t i = 0; i < mixed.size(); ++i)
    ASSERT_NEAR(mixed[i], 0.25 * gradient[i] + 0.75 * fixture.gradients[i], 2e-6);  // observed: 3e-7
  const std::vector<float> own = read(fixture.rows, nullptr, 0, nullptr);
  read(fixture.rows, own.data(), 1, mixed.data());
  for (const float g : mixed) ASSERT_NEAR(g, 0, 1e-6);  // observed: 0
}

TEST(Receiver, RefusesTokensThatItDoesNotKnow) {
  const Fixture fixture = load("qwen2-14-2-tied");
  ThreadPool pool(1);
  Gemm gemm(pool, kernels());
  const auto receiver = Receiver::create(fixture.source, gemm, Receiver::Weights::kAsMet);
  const std::vector<TokenId> one = {1};
  Reading reading = {nullptr, 0, one, nullptr};
  EXPECT_EQ(receiver->read({&reading, 1}).status().message(),
            "a text of 1 tokens: at least 2 are needed to score one");
  const std::vector<TokenId> unknown = {1, 1000};
  reading.tokens = unknown;
  EXPECT_EQ(receiver->read({&reading, 1}).status().message(), "token 1000 is not in the vocabulary of 32");
}

}  // namespace
}  // namespace kvfold::testing
