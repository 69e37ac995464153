// What is measured of each trial and condition.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/kv/cache.h"
#include "experiments/harness/generate.h"

namespace kvfold {

// The markers that stand in `text` as whole words, case ignored by Unicode's folding: letters and digits on
// either side of a marker make it part of another word.
std::vector<std::string> find_markers(const std::string& text, const std::vector<std::string>& markers);

// Mean Euclidean norm of rows [begin, end) over all lanes, of K and of V. Zero for no rows.
struct RowNorms {
  double keys = 0, values = 0;
};
RowNorms mean_row_norms(const KvCache& cache, int begin, int end);

// exp of the mean negative log-probability; none for no tokens.
std::optional<double> perplexity(std::span<const double> log_probabilities);

// Log-probability of each id given the row of logits that it was met with. REQUIRES: logits.size() >=
// ids.size().
std::vector<double> score(const std::vector<std::vector<float>>& logits, std::span<const TokenId> ids);

// Mean of KL(p || q) in nats over positions. REQUIRES: as many rows in q as in p, at least one.
double mean_kl(const std::vector<std::vector<float>>& p, const std::vector<std::vector<float>>& q);

}  // namespace kvfold
