#include "experiments/harness/attention_mass.h"

#include <numeric>

#include "engine/attention_weights.h"

namespace kvfold {

Result<std::vector<AttentionShare>> attention_mass(Session& session, std::span<const MassJob> jobs) {
  const ModelConfig& config = session.model().config();
  std::vector<int> layers(static_cast<size_t>(config.layers));
  std::vector<int> heads(static_cast<size_t>(config.heads));
  std::iota(layers.begin(), layers.end(), 0);
  std::iota(heads.begin(), heads.end(), 0);
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

}  // namespace kvfold
