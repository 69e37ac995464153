#include "engine/likeliest.h"

#include <algorithm>
#include <cmath>

namespace kvfold {

bool likelier(const TokenLogit& a, const TokenLogit& b) {
  if (std::isnan(a.logit) || std::isnan(b.logit))
    return std::isnan(a.logit) == std::isnan(b.logit) ? a.id < b.id : std::isnan(b.logit);
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// A heap of the best so far, its last on top.
void find_likeliest(std::span<const float> logits, std::span<TokenLogit> out) {
  if (out.empty()) return;
  for (size_t i = 0; i < out.size(); ++i) out[i] = {static_cast<TokenId>(i), logits[i]};
  std::make_heap(out.begin(), out.end(), likelier);
  for (size_t i = out.size(); i < logits.size(); ++i) {
    if (logits[i] <= out.front().logit) continue;  // nearly all; not true of NaN
    const TokenLogit next{static_cast<TokenId>(i), logits[i]};
    if (!likelier(next, out.front())) continue;
    std::pop_heap(out.begin(), out.end(), likelier);
    out.back() = next;
    std::push_heap(out.begin(), out.end(), likelier);
  }
  std::sort_heap(out.begin(), out.end(), likelier);
}

}  // namespace kvfold
