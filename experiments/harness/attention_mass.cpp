#include "experiments/harness/attention_mass.h"

#include <numeric>

#include "engine/attention_weights.h"

namespace kvfold {
namespace {

std::vector<int> first_integers(int n) {
  std::vector<int> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

}  // namespace

Result<std::vector<AttentionShare>> attention_mass(Session& session, std::span<const MassJob> jobs) {
  const ModelConfig& config = session.model().config();
  const std::vector<int> layers = first_integers(config.layers);
  const std::vector<int> heads = first_integers(config.heads);
  std::vector<AttentionShare> out;
  for (const MassJob& job : jobs) {
    KvCache fork = job.cache->fork();
    KVFOLD_ASSIGN_OR_RETURN(const AttentionWeights weights,
                            feed_with_attention(session, fork, std::span(&job.token, 1), layers, heads));
    AttentionShare& share = out.emplace_back();
    share.by_layer.resize(layers.size());
    double sink = 0;
    for (size_t layer = 0; layer < layers.size(); ++layer)
      for (size_t head = 0; head < heads.size(); ++head) {
        const std::span<const float> row = weights.of(static_cast<int>(layer), static_cast<int>(head), 0);
        share.by_layer[layer] +=
            std::accumulate(row.begin() + job.begin, row.begin() + job.end, 0.0) / config.heads;
        sink += row[0] / (static_cast<double>(config.heads) * config.layers);
      }
    if (job.begin == 0 && job.end > 0)
      share.no_sink =
          std::accumulate(share.by_layer.begin(), share.by_layer.end(), 0.0) / config.layers - sink;
  }
  return out;
}

Result<std::vector<float>> row_attention(Session& session, const KvCache& cache,
                                         std::span<const TokenId> tokens) {
  KVFOLD_CHECK(cache.size() >= 2 && !tokens.empty());
  const ModelConfig& config = session.model().config();
  std::vector<double> sums(static_cast<size_t>(cache.size()));
  KvCache fork = cache.fork();
  KVFOLD_RETURN_IF_ERROR(feed_with_attention(session, fork, tokens, first_integers(config.layers),
                                             first_integers(config.heads),
                                             [&](int, int, int, std::span<const float> weights) {
                                               for (size_t r = 0; r < sums.size(); ++r) sums[r] += weights[r];
                                             }));
  const double mean = std::accumulate(sums.begin() + 1, sums.end(), 0.0) / (cache.size() - 1);
  std::vector<float> out;
  for (const double sum : sums) out.push_back(static_cast<float>(mean > 0 ? sum / mean : 1));
  return out;
}

}  // namespace kvfold
