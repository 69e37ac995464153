#include "experiments/harness/cache_signature.h"

#include <algorithm>
#include <numeric>

#include "engine/kv/ops.h"
#include "engine/kv/statistics.h"

namespace kvfold {
namespace {

double mean(const std::vector<double>& x) {
  return x.empty() ? 0 : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

PartSignature part_signature(const KvSlice& slice, Part part) {
  const CacheShape& shape = slice.shape();
  PartSignature out;
  const auto layers = static_cast<size_t>(shape.layers);
  const auto heads = static_cast<double>(shape.kv_heads);
  out.lane_norms.assign(layers, std::vector<double>(static_cast<size_t>(shape.kv_heads)));
  out.row_norms.assign(layers, std::vector<double>(static_cast<size_t>(slice.size())));
  for (auto* list : {&out.norm_deviations, &out.variances, &out.entropies, &out.ranks, &out.ranks_90})
    list->assign(layers, 0.0);
  for (int layer = 0; layer < shape.layers; ++layer) {
    std::vector<double> held(static_cast<size_t>(slice.size()));  // heads that hold the row
    for (int head = 0; head < shape.kv_heads; ++head) {
      const int lane = shape.lane(layer, head);
      const LaneStatistics s = lane_statistics(slice.lanes, part, lane);
      out.lane_norms[layer][head] = s.mean_norm;
      out.norm_deviations[layer] += s.norm_deviation / heads;
      out.variances[layer] += s.deviation * s.deviation / heads;
      out.entropies[layer] += s.spectral_entropy / heads;
      out.ranks[layer] += s.effective_rank / heads;
      out.ranks_90[layer] += s.rank_90 / heads;
      const std::vector<double> norms = row_norms(slice.lanes, part, lane, slice.size());
      for (size_t row = 0; row < norms.size(); ++row) {
        if (norms[row] < 0) continue;
        out.row_norms[layer][row] += norms[row];
        ++held[row];
      }
    }
    for (size_t row = 0; row < held.size(); ++row) out.row_norms[layer][row] /= std::max(1.0, held[row]);
    out.norm += mean(out.lane_norms[layer]) / shape.layers;
  }
  out.rank = mean(out.ranks);
  out.rank_90 = mean(out.ranks_90);
  return out;
}

}  // namespace

CacheSignature cache_signature(const KvCache& cache, int begin, int end) {
  CacheSignature out;
  out.rows = end - begin;
  if (out.rows == 0) return out;
  Selection selection = Selection::all(cache.shape(), cache.size());
  selection.rows.resize(static_cast<size_t>(end - begin));
  std::iota(selection.rows.begin(), selection.rows.end(), begin);
  const Result<KvSlice> slice = extract(cache, selection);
  KVFOLD_CHECK(slice.ok());
  out.keys = part_signature(*slice, Part::kKey);
  out.values = part_signature(*slice, Part::kValue);
  return out;
}

}  // namespace kvfold
