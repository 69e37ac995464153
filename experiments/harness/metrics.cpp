#include "experiments/harness/metrics.h"

#include <utf8proc.h>

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "engine/sampler.h"

namespace kvfold {
namespace {

// Code points of `text`, case-folded and compatibility-composed. Bytes that are not UTF-8 end it.
std::vector<utf8proc_int32_t> fold(const std::string& text) {
  utf8proc_uint8_t* mapped = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_CASEFOLD | UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  const utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                               static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  std::vector<utf8proc_int32_t> out;
  for (utf8proc_ssize_t at = 0; at < length;) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(mapped + at, length - at, &c);
    if (n <= 0) break;
    out.push_back(c);
    at += n;
  }
  std::free(mapped);
  return out;
}

bool in_word(utf8proc_int32_t c) {
  const utf8proc_category_t category = utf8proc_category(c);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
         (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_NO);
}

bool holds_word(const std::vector<utf8proc_int32_t>& text, const std::vector<utf8proc_int32_t>& word) {
  if (word.empty()) return false;
  for (size_t at = 0; at + word.size() <= text.size(); ++at) {
    if (!std::equal(word.begin(), word.end(), text.begin() + static_cast<std::ptrdiff_t>(at))) continue;
    const size_t end = at + word.size();
    const bool begins = at == 0 || !in_word(text[at - 1]) || !in_word(word.front());
    const bool ends = end == text.size() || !in_word(text[end]) || !in_word(word.back());
    if (begins && ends) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> find_markers(const std::string& text, const std::vector<std::string>& markers) {
  const std::vector<utf8proc_int32_t> folded = fold(text);
  std::vector<std::string> found;
  for (const std::string& marker : markers)
    if (holds_word(folded, fold(marker))) found.push_back(marker);
  return found;
}

RowNorms mean_row_norms(const KvCache& cache, int begin, int end) {
  const CacheShape& shape = cache.shape();
  std::vector<float> row(shape.head_dim);
  const auto mean = [&](Part part) {
    double sum = 0;
    int64_t count = 0;
    for (int lane = 0; lane < shape.lanes(); ++lane) {
      const PageTable& table = cache.lanes().table(part, lane);
      for (int slot = begin; slot < end; ++slot) {
        if (!table.holds(slot)) continue;
        table.load(part, slot, row.data());
        sum += std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
        ++count;
      }
    }
    return count == 0 ? 0.0 : sum / static_cast<double>(count);
  };
  return {mean(Part::kKey), mean(Part::kValue)};
}

std::optional<double> perplexity(std::span<const double> log_probabilities) {
  if (log_probabilities.empty()) return std::nullopt;
  const double sum = std::accumulate(log_probabilities.begin(), log_probabilities.end(), 0.0);
  return std::exp(-sum / static_cast<double>(log_probabilities.size()));
}

std::vector<double> score(const std::vector<std::vector<float>>& logits, std::span<const TokenId> ids) {
  std::vector<double> out;
  out.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) out.push_back(log_probability(logits[i], ids[i]));
  return out;
}

double mean_kl(const std::vector<std::vector<float>>& p, const std::vector<std::vector<float>>& q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += kl_divergence(p[i], q[i]);
  return sum / static_cast<double>(p.size());
}

}  // namespace kvfold
