#include "engine/attention_weights.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace kvfold {
namespace {

// A lane's turned keys with their slots.
struct TurnedKeys {
  int lane = -1;
  std::vector<int> slots;
  std::vector<double> keys;  // [slots][head_dim]
};

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

// Looks on as tokens are fed to `cache`.
class Onlooker {
 public:
  Onlooker(const Session& session, const KvCache& cache, std::span<const int> layers,
           std::span<const int> heads, const AttentionSink& sink)
      : model_(session.model()), cache_(cache), layers_(layers), heads_(heads), sink_(sink) {
    const ModelConfig& c = model_.config();
    first_slot_ = cache.size();
    for (int i = 0; i < c.rotary_dim / 2; ++i) {
      const double factor = c.rope_factors.empty() ? 1.0 : c.rope_factors[i];
      frequencies_.push_back(std::pow(static_cast<double>(c.rope_base), -2.0 * i / c.rotary_dim) / factor);
    }
  }

  // `q`: as QueryProbe has it.
  void look(int layer, const BatchSequence& sequence, const float* q) {
    const auto at = std::find(layers_.begin(), layers_.end(), layer);
    if (at == layers_.end()) return;
    const ModelConfig& config = model_.config();
    const auto head_dim = static_cast<size_t>(config.head_dim);
    const size_t columns = static_cast<size_t>(config.heads) * head_dim;
    std::vector<float> queries(static_cast<size_t>(sequence.count) * columns);
    model_.backend().download(q + static_cast<size_t>(sequence.row) * columns, queries);
    TurnedKeys keys;
    std::vector<double> query(head_dim);
    std::vector<float> weights(static_cast<size_t>(cache_.size()));
    for (size_t h = 0; h < heads_.size(); ++h) {
      const int lane = cache_.shape().lane(layer, heads_[h] / (config.heads / config.kv_heads));
      if (keys.lane != lane) keys = turned_keys(lane);
      for (int i = 0; i < sequence.count; ++i) {
        const float* from =
            &queries[static_cast<size_t>(i) * columns + static_cast<size_t>(heads_[h]) * head_dim];
        query.assign(from, from + head_dim);
        const int slot = sequence.slot + i;
        turn(cache_.rows().positions[slot], query);
        weigh(keys, query, slot, weights);
        sink_(static_cast<int>(at - layers_.begin()), static_cast<int>(h), slot - first_slot_, weights);
      }
    }
  }

 private:
  // A vector of one head turned by its position (Su et al. 2021), in f64.
  void turn(int64_t position, std::span<double> x) const {
    const size_t pairs = frequencies_.size();
    const bool interleaved = model_.config().rope_pairing == RopePairing::kInterleaved;
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * frequencies_[i];
      double& a = x[interleaved ? 2 * i : i];
      double& b = x[interleaved ? 2 * i + 1 : i + pairs];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }

  TurnedKeys turned_keys(int lane) const {
    TurnedKeys out;
    out.lane = lane;
    std::vector<float> row(static_cast<size_t>(model_.config().head_dim));
    const PageTable& table = cache_.lanes().table(Part::kKey, lane);
    for (const KvSpan& span : table.spans())
      for (int slot = span.slot; slot < span.slot + span.count; ++slot) {
        table.load(Part::kKey, slot, row.data());
        out.slots.push_back(slot);
        out.keys.insert(out.keys.end(), row.begin(), row.end());
        turn(cache_.rows().positions[slot], std::span(out.keys).last(row.size()));
      }
    return out;
  }

  Model& model_;
  const KvCache& cache_;
  std::span<const int> layers_, heads_;
  const AttentionSink& sink_;
  int first_slot_;
  std::vector<double> frequencies_;  // [pairs], radians a position
};

}  // namespace

Status feed_with_attention(Session& session, KvCache& cache, std::span<const TokenId> tokens,
                           std::span<const int> layers, std::span<const int> heads,
                           const AttentionSink& sink) {
  KVFOLD_RETURN_IF_ERROR(check_indices(layers, "layer", session.model().config().layers));
  KVFOLD_RETURN_IF_ERROR(check_indices(heads, "head", session.model().config().heads));
  Onlooker onlooker(session, cache, layers, heads, sink);
  const Feed feed{&cache, tokens, Wanted::kNone};
  return session.feed(std::span(&feed, 1), {},
                      [&](int layer, std::span<const BatchSequence> batch, const float* q) {
                        onlooker.look(layer, batch[0], q);
                      });
}

Result<AttentionWeights> feed_with_attention(Session& session, KvCache& cache,
                                             std::span<const TokenId> tokens, std::span<const int> layers,
                                             std::span<const int> heads) {
  AttentionWeights out{{layers.begin(), layers.end()},
                       {heads.begin(), heads.end()},
                       static_cast<int>(tokens.size()),
                       cache.size() + static_cast<int>(tokens.size()),
                       {}};
  out.weights.resize(out.offset(static_cast<int>(layers.size()), 0, 0));
  KVFOLD_RETURN_IF_ERROR(feed_with_attention(
      session, cache, tokens, layers, heads,
      [&](int layer, int head, int query, std::span<const float> weights) {
        std::copy(weights.begin(), weights.end(),
                  out.weights.begin() + static_cast<std::ptrdiff_t>(out.offset(layer, head, query)));
      }));
  return out;
}

AttentionMass attention_mass(const AttentionWeights& weights, std::span<const int> slots) {
  const int layers = static_cast<int>(weights.layers.size());
  const int heads = static_cast<int>(weights.heads.size());
  KVFOLD_CHECK(layers > 0 && heads > 0 && weights.queries > 0);
  AttentionMass out;
  out.heads = heads;
  for (int layer = 0; layer < layers; ++layer) {
    double of_layer = 0;
    for (int head = 0; head < heads; ++head) {
      double sum = 0;
      for (int query = 0; query < weights.queries; ++query) {
        const std::span<const float> w = weights.of(layer, head, query);
        for (const int slot : slots) sum += w[static_cast<size_t>(slot)];
      }
      out.by_head.push_back(sum / weights.queries);
      of_layer += out.by_head.back();
    }
    out.by_layer.push_back(of_layer / heads);
    out.mean += out.by_layer.back() / layers;
  }
  return out;
}

}  // namespace kvfold
