#include "engine/attention_weights.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace kvfold {
namespace {

// A vector of one head turned by its position (Su et al. 2021), in f64.
void turn(const ModelConfig& config, int64_t position, std::span<double> x) {
  const int pairs = config.rotary_dim / 2;
  for (int i = 0; i < pairs; ++i) {
    const double factor = config.rope_factors.empty() ? 1.0 : config.rope_factors[i];
    const double angle = static_cast<double>(position) *
                         std::pow(static_cast<double>(config.rope_base), -2.0 * i / config.rotary_dim) /
                         factor;
    const bool interleaved = config.rope_pairing == RopePairing::kInterleaved;
    double& a = x[interleaved ? 2 * i : i];
    double& b = x[interleaved ? 2 * i + 1 : i + pairs];
    const double turned = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = turned;
  }
}

// A lane's turned keys with their slots.
struct TurnedKeys {
  std::vector<int> slots;
  std::vector<double> keys;  // [slots][head_dim]
};

TurnedKeys turned_keys(const ModelConfig& config, const KvCache& cache, int lane) {
  TurnedKeys out;
  std::vector<float> row(static_cast<size_t>(config.head_dim));
  const PageTable& table = cache.lanes().table(Part::kKey, lane);
  for (const KvSpan& span : table.spans())
    for (int slot = span.slot; slot < span.slot + span.count; ++slot) {
      table.load(Part::kKey, slot, row.data());
      out.slots.push_back(slot);
      out.keys.insert(out.keys.end(), row.begin(), row.end());
      turn(config, cache.rows().positions[slot],
           std::span(out.keys).last(static_cast<size_t>(config.head_dim)));
    }
  return out;
}

// softmax over the rows up to and with `slot`, written to out[slots of the cache].
void weigh(const TurnedKeys& keys, std::span<const double> query, int slot, std::span<float> out) {
  const size_t n = query.size();
  const size_t seen =
      static_cast<size_t>(std::upper_bound(keys.slots.begin(), keys.slots.end(), slot) - keys.slots.begin());
  std::vector<double> scores(seen);
  double largest = -INFINITY;
  for (size_t r = 0; r < seen; ++r) {
    double dot = 0;
    for (size_t d = 0; d < n; ++d) dot += query[d] * keys.keys[r * n + d];
    scores[r] = dot / std::sqrt(static_cast<double>(n));
    largest = std::max(largest, scores[r]);
  }
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - largest);
  std::fill(out.begin(), out.end(), 0.0F);
  for (size_t r = 0; r < seen; ++r)
    out[static_cast<size_t>(keys.slots[r])] = static_cast<float>(scores[r] / sum);
}

Status check_indices(std::span<const int> indices, const char* what, int count) {
  for (const int i : indices)
    if (i < 0 || i >= count)
      return Status::error(fmt::format("attention: {} {} asked, 0-{} exist", what, i, count - 1));
  return {};
}

}  // namespace

Result<AttentionWeights> feed_with_attention(Session& session, KvCache& cache,
                                             std::span<const TokenId> tokens, std::span<const int> layers,
                                             std::span<const int> heads) {
  const ModelConfig& config = session.model().config();
  KVFOLD_RETURN_IF_ERROR(check_indices(layers, "layer", config.layers));
  KVFOLD_RETURN_IF_ERROR(check_indices(heads, "head", config.heads));
  AttentionWeights out{{layers.begin(), layers.end()},
                       {heads.begin(), heads.end()},
                       static_cast<int>(tokens.size()),
                       cache.size() + static_cast<int>(tokens.size()),
                       {}};
  out.weights.resize(layers.size() * heads.size() * tokens.size() * static_cast<size_t>(out.rows));
  const int first_slot = cache.size();
  const int group = config.heads / config.kv_heads;
  const auto head_dim = static_cast<size_t>(config.head_dim);

  const auto probe = [&](int layer, std::span<const BatchSequence> batch, const float* q) {
    const auto at = std::find(layers.begin(), layers.end(), layer);
    if (at == layers.end()) return;
    const BatchSequence& sequence = batch[0];
    const size_t columns = static_cast<size_t>(config.heads) * head_dim;
    std::vector<float> queries(static_cast<size_t>(sequence.count) * columns);
    session.model().backend().download(q + static_cast<size_t>(sequence.row) * columns, queries);
    for (size_t h = 0; h < heads.size(); ++h) {
      const TurnedKeys keys = turned_keys(config, cache, cache.shape().lane(layer, heads[h] / group));
      for (int i = 0; i < sequence.count; ++i) {
        const int slot = sequence.slot + i;
        const float* from =
            &queries[static_cast<size_t>(i) * columns + static_cast<size_t>(heads[h]) * head_dim];
        std::vector<double> query(from, from + head_dim);
        turn(config, cache.rows().positions[slot], query);
        const float* to =
            out.of(static_cast<int>(at - layers.begin()), static_cast<int>(h), slot - first_slot);
        weigh(keys, query, slot, {const_cast<float*>(to), static_cast<size_t>(out.rows)});
      }
    }
  };
  const Feed feed{&cache, tokens, Wanted::kNone};
  KVFOLD_RETURN_IF_ERROR(session.feed(std::span(&feed, 1), {}, probe));
  return out;
}

}  // namespace kvfold
