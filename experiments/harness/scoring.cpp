#include "experiments/harness/scoring.h"

#include <algorithm>
#include <numeric>

namespace kvfold {
namespace {

// Rows of all the jobs of one feed: bounds the pages that their forks take.
constexpr size_t kMostRows = 4096;

void take(const ScoreJob& job, size_t position, std::span<const float> logits, Score& out) {
  const bool scored = position < job.ids.size();
  const bool first = position == 0 && !job.first_tokens.empty();
  if (scored || first) {
    const double total = log_sum_exp(logits);
    if (scored) out.log_probabilities.push_back(logits[job.ids[position]] - total);
    if (first)
      for (const TokenId id : job.first_tokens) out.first_token_scores.push_back(logits[id] - total);
  }
  if (position < job.against.size()) out.kl.push_back(job.against[position].kl_to(logits));
  if (job.keep_distributions) out.distributions.emplace_back(logits);
}

// The last token's logits are of use only to comparisons.
size_t fed_tokens(const ScoreJob& job) {
  const size_t positions = std::max(job.ids.size(), job.against.size());
  return std::max<size_t>(1, job.keep_distributions ? job.ids.size() + 1 : positions);
}

Status score_some(Session& session, std::span<const ScoreJob> jobs, std::span<Score> out) {
  std::vector<KvCache> caches;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<Feed> feeds;
  caches.reserve(jobs.size());
  tokens.reserve(jobs.size());
  for (const ScoreJob& job : jobs) {
    caches.push_back(job.cache->fork());
    tokens.push_back({job.first});
    tokens.back().insert(tokens.back().end(), job.ids.begin(), job.ids.end());
    tokens.back().resize(fed_tokens(job));
    feeds.push_back({&caches.back(), tokens.back(), Wanted::kAll});
  }
  return session.feed(feeds, [&](int feed, int token, std::span<const float> logits) {
    take(jobs[feed], static_cast<size_t>(token), logits, out[feed]);
  });
}

// For each job the one whose answer holds its own: itself, or one of the same cache with at least its tokens.
std::vector<size_t> answered_by(std::span<const ScoreJob> jobs) {
  std::vector<size_t> out(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const ScoreJob& job = jobs[i];
    out[i] = i;
    if (!job.against.empty() || !job.first_tokens.empty() || job.keep_distributions) continue;
    // The longest; the first of equals. What it begins with would itself be answered by nothing longer.
    for (size_t j = 0; j < jobs.size(); ++j) {
      const ScoreJob& other = jobs[j];
      const size_t best = out[i] == i ? job.ids.size() : jobs[out[i]].ids.size();
      const bool better = other.ids.size() > best || (out[i] == i && other.ids.size() == best && j < i);
      if (better && other.cache == job.cache && other.first == job.first &&
          std::equal(job.ids.begin(), job.ids.end(), other.ids.begin()))
        out[i] = j;
    }
  }
  return out;
}

}  // namespace

double Score::sum(size_t from) const {
  return std::accumulate(log_probabilities.begin() + static_cast<std::ptrdiff_t>(from),
                         log_probabilities.end(), 0.0);
}

Result<std::vector<Score>> score(Session& session, std::span<const ScoreJob> jobs) {
  const std::vector<size_t> by = answered_by(jobs);
  std::vector<ScoreJob> computed;
  std::vector<size_t> index(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (by[i] != i) continue;
    index[i] = computed.size();
    computed.push_back(jobs[i]);
  }
  std::vector<Score> scores(computed.size());
  for (size_t begin = 0; begin < computed.size();) {
    size_t end = begin;
    for (size_t rows = 0; end < computed.size(); ++end) {
      rows += fed_tokens(computed[end]);
      if (rows > kMostRows && end > begin) break;
    }
    KVFOLD_RETURN_IF_ERROR(score_some(session, std::span(computed).subspan(begin, end - begin),
                                      std::span(scores).subspan(begin)));
    begin = end;
  }
  std::vector<Score> out(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i)
    if (by[i] != i) {
      const std::vector<double>& all = scores[index[by[i]]].log_probabilities;
      out[i].log_probabilities.assign(all.begin(),
                                      all.begin() + static_cast<std::ptrdiff_t>(jobs[i].ids.size()));
    }
  for (size_t i = 0; i < jobs.size(); ++i)
    if (by[i] == i) out[i] = std::move(scores[index[i]]);
  return out;
}

}  // namespace kvfold
