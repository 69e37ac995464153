// bench: how fast this machine runs a model: load, prefill, decode at several depths, a batch, memory.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <numeric>

#include "engine/read_bandwidth.h"
#include "engine/thread_pool.h"
#include "experiments/cli/common.h"

namespace kvfold::cli {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  ModelOptions model;
  std::vector<std::string> parts;  // empty: all
  int repeat = 3;
  bool json = false;
};

constexpr int kPrefill = 512;
constexpr int kDecode = 128;
constexpr int kDecodeAtDepth = 32;
constexpr int kBatch = 16;
constexpr int kDepths[] = {512, 1024, 2048, 4096};

// A field of /proc/self/status in bytes, "VmHWM:" being the most memory that the process ever held.
int64_t process_memory(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (int64_t kib = 0; word == field && status >> kib) return kib * 1024;
  return 0;
}

nlohmann::ordered_json spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  const double median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  return {{"median", median}, {"least", values.front()}, {"most", values.back()}};
}

// Token ids without meaning; the same ones in every run.
std::vector<TokenId> some_tokens(const Session& session, int count, int offset = 0) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  const int vocabulary = session.model().config().vocab_size;
  for (int i = 0; i < count; ++i) ids[i] = static_cast<TokenId>((1000 + (i + offset) * 37LL) % vocabulary);
  return ids;
}

class Bench {
 public:
  Bench(const Options& options, Session& session) : options_(options), session_(session) {}

  // Tokens a second.
  Result<double> prefill(int tokens) {
    KvCache cache = session_.make_cache();
    const std::vector<TokenId> ids = some_tokens(session_, tokens);
    const Clock::time_point start = Clock::now();
    KVFOLD_RETURN_IF_ERROR(session_.feed(cache, ids).status());
    return tokens / seconds_since(start);
  }

  // Goes on from what the cache holds.
  Status fill(KvCache& cache, int depth) {
    return session_.feed(cache, some_tokens(session_, depth - cache.size(), cache.size())).status();
  }

  // Tokens a second of `sequences` forks of a cache, which go their own way, one token each at a time.
  Result<double> decode(const KvCache& base, int sequences, int tokens) {
    const int depth = base.size();
    std::vector<KvCache> caches(static_cast<size_t>(sequences), base.fork());
    std::vector<TokenId> next = some_tokens(session_, sequences, depth);
    const Clock::time_point start = Clock::now();
    for (int t = 0; t < tokens; ++t) {
      std::vector<Feed> feeds;
      for (int i = 0; i < sequences; ++i)
        feeds.push_back({&caches[i], std::span(&next[i], 1), Wanted::kLast});
      KVFOLD_RETURN_IF_ERROR(session_.feed(
          feeds, 1,
          [&](int feed, int, std::span<const TokenLogit> likeliest) { next[feed] = likeliest[0].id; }));
    }
    return static_cast<double>(sequences) * tokens / seconds_since(start);
  }

  template <class Measure>
  Status add(nlohmann::ordered_json& out, const std::string& name, Measure measure) {
    std::vector<double> values;
    for (int i = 0; i < options_.repeat; ++i) {
      KVFOLD_ASSIGN_OR_RETURN(const double value, measure());
      values.push_back(value);
    }
    out[name] = spread(values);
    if (!options_.json) fmt::print("{:<28}{:>10.1f}\n", name, out[name]["median"].get<double>());
    return {};
  }

 private:
  const Options& options_;
  Session& session_;
};

bool wanted(const Options& options, const std::string& part) {
  return options.parts.empty() ||
         std::find(options.parts.begin(), options.parts.end(), part) != options.parts.end();
}

Status measure(const Options& options, Session& session, nlohmann::ordered_json& out) {
  Bench bench(options, session);
  KvCache cache = session.make_cache();
  KVFOLD_RETURN_IF_ERROR(bench.fill(cache, 1));
  if (wanted(options, "decode"))
    KVFOLD_RETURN_IF_ERROR(
        bench.add(out, "decode_128_tokens_per_s", [&] { return bench.decode(cache, 1, kDecode); }));
  // Before what takes more: the memory of a plain generation.
  out["peak_bytes_after_decode"] = process_memory("VmHWM:");
  if (wanted(options, "prefill"))
    KVFOLD_RETURN_IF_ERROR(
        bench.add(out, "prefill_512_tokens_per_s", [&] { return bench.prefill(kPrefill); }));
  if (wanted(options, "batch")) {
    KVFOLD_RETURN_IF_ERROR(bench.fill(cache, kPrefill / 4));
    KVFOLD_RETURN_IF_ERROR(
        bench.add(out, "batch_16_tokens_per_s", [&] { return bench.decode(cache, kBatch, kDecodeAtDepth); }));
  }
  if (wanted(options, "depth"))
    for (const int depth : kDepths) {
      KVFOLD_RETURN_IF_ERROR(bench.fill(cache, depth));
      KVFOLD_RETURN_IF_ERROR(bench.add(out, fmt::format("decode_at_{}_tokens_per_s", depth),
                                       [&] { return bench.decode(cache, 1, kDecodeAtDepth); }));
    }
  out["peak_bytes"] = process_memory("VmHWM:");
  return {};
}

Status run(const Options& options) {
  // Each time after the one before is gone, so that no more than one is in memory.
  std::unique_ptr<Session> session;
  std::vector<double> loads;
  std::vector<double> first_logits;
  for (int i = 0; i < options.repeat; ++i) {
    session.reset();
    const Clock::time_point start = Clock::now();
    KVFOLD_ASSIGN_OR_RETURN(session, options.model.open());
    loads.push_back(seconds_since(start) * 1e3);
    KvCache cache = session->make_cache();
    KVFOLD_RETURN_IF_ERROR(session->feed(cache, some_tokens(*session, 1)).status());
    first_logits.push_back(seconds_since(start) * 1e3);
  }
  const int threads = options.model.threads > 0 ? options.model.threads : ThreadPool::available();
  nlohmann::ordered_json out = {{"model", session->model().source().path},
                                {"backend", session->model().backend().name()},
                                {"threads", threads},
                                {"load_ms", spread(loads)},
                                {"load_to_first_logits_ms", spread(first_logits)}};
  if (!options.json)
    fmt::print("{}\n{:<28}{:>10.1f}\n{:<28}{:>10.1f}\n", session->model().backend().name(), "load_ms",
               out["load_ms"]["median"].get<double>(), "load_to_first_logits_ms",
               out["load_to_first_logits_ms"]["median"].get<double>());
  KVFOLD_RETURN_IF_ERROR(measure(options, *session, out));
  KVFOLD_ASSIGN_OR_RETURN(const double read, read_bandwidth(threads));
  out["read_gb_per_s"] = read / 1e9;
  if (options.json) {
    print_json(out);
  } else {
    fmt::print("{:<28}{:>10.1f}\n{:<28}{:>10.1f}\n", "read_gb_per_s", out["read_gb_per_s"].get<double>(),
               "peak_mb_after_decode", out["peak_bytes_after_decode"].get<double>() / 1e6);
  }
  return {};
}

}  // namespace

Action add_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->model.declare(app);
  app.add_option("--parts", options->parts, "decode, prefill, depth, batch: only these")
      ->check(CLI::IsMember({"decode", "prefill", "depth", "batch"}));
  app.add_option("--repeat", options->repeat, "how often each is measured; the median is shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options->json, "print medians and spreads as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvfold::cli
