#include "engine/session.h"

#include <fmt/core.h>

#include <algorithm>

#include "engine/kv/ops.h"

namespace kvfold {

Session::Session(std::shared_ptr<Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                 std::shared_ptr<PagePool> pool, Activations activations, const SessionOptions& options)
    : model_(std::move(model)),
      tokenizer_(std::move(tokenizer)),
      pool_(std::move(pool)),
      activations_(std::move(activations)),
      options_(options) {}

Result<std::unique_ptr<Session>> Session::create(std::shared_ptr<Model> model,
                                                 const SessionOptions& options) {
  if (options.chunk < 1)
    return Status::error(fmt::format("chunk {}: expected at least 1 token", options.chunk));
  const ModelSource& source = model->source();
  Result<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::create(source.vocabulary, source.storage);
  if (!tokenizer.ok()) return tokenizer.status().with_prefix(source.path + ": ");
  KVFOLD_ASSIGN_OR_RETURN(
      std::shared_ptr<PagePool> pool,
      model->backend().make_pool(options.cache_type, model->config().head_dim, options.cache_bytes));
  KVFOLD_ASSIGN_OR_RETURN(Activations activations, model->make_activations(options.chunk));
  return std::unique_ptr<Session>(
      new Session(std::move(model), *std::move(tokenizer), std::move(pool), std::move(activations), options));
}

Status Session::check_cache(const KvCache& cache) const {
  if (cache.pool() == pool_ && cache.shape() == model_->cache_shape()) return {};
  return Status::error("the cache is of another session or of another model's shape");
}

Status Session::check_token(const char* operation, TokenId id) const {
  if (id >= 0 && id < model_->config().vocab_size) return {};
  return Status::error(fmt::format("{}: token id {} is outside the vocabulary, 0-{}", operation, id,
                                   model_->config().vocab_size - 1));
}

// Where a window would slide, the model means another attention than the one that is computed.
Status Session::check_window(const char* operation, size_t rows) const {
  const int window = model_->config().attention_window;
  if (window == 0 || rows <= static_cast<size_t>(window)) return {};
  return Status::error(fmt::format("{}: found {} rows, expected at most the model's attention window, {}",
                                   operation, rows, window));
}

Status Session::check(std::span<const Feed> feeds) const {
  for (size_t i = 0; i < feeds.size(); ++i) {
    const Feed& feed = feeds[i];
    for (size_t j = 0; j < i; ++j)
      if (feeds[j].cache == feed.cache) return Status::error("feed: a cache is named twice in one batch");
    KVFOLD_RETURN_IF_ERROR(check_cache(*feed.cache));
    KVFOLD_RETURN_IF_ERROR(
        check_window("feed", static_cast<size_t>(feed.cache->size()) + feed.tokens.size()));
    for (const TokenId id : feed.tokens) KVFOLD_RETURN_IF_ERROR(check_token("feed", id));
  }
  return {};
}

Status Session::feed(std::span<const Feed> feeds, const LogitsSink& sink, const QueryProbe& probe) {
  const auto columns = static_cast<size_t>(model_->config().vocab_size);
  logits_.resize(columns);
  const auto show = [&](std::span<const Asked> asked) {
    for (size_t i = 0; i < asked.size(); ++i) {
      model_->backend().download(activations_.logits.get() + i * columns, logits_);
      sink(asked[i].feed, asked[i].token, logits_);
    }
  };
  return feed_rows(feeds, show, probe);
}

Status Session::feed(std::span<const Feed> feeds, int k, const LikeliestSink& sink) {
  const int columns = model_->config().vocab_size;
  const auto each = static_cast<size_t>(std::min(k, columns));
  const auto show = [&](std::span<const Asked> asked) {
    likeliest_.resize(asked.size() * each);
    model_->backend().likeliest(activations_.logits.get(), static_cast<int>(asked.size()), columns,
                                static_cast<int>(each), likeliest_);
    for (size_t i = 0; i < asked.size(); ++i)
      sink(asked[i].feed, asked[i].token, std::span(likeliest_).subspan(i * each, each));
  };
  return feed_rows(feeds, show, {});
}

Status Session::feed_rows(std::span<const Feed> feeds, const RowsSink& sink, const QueryProbe& probe) {
  KVFOLD_RETURN_IF_ERROR(check(feeds));
  // Room for every token is made before the first is computed, so that nothing can fail half way.
  std::vector<int> first_slots;
  for (const Feed& feed : feeds) {
    first_slots.push_back(feed.cache->size());
    const Status status = feed.cache->grow(feed.tokens);
    if (status.ok()) continue;
    for (size_t i = 0; i + 1 < first_slots.size(); ++i) feeds[i].cache->shrink(first_slots[i]);
    return status;
  }

  std::vector<Piece> pieces;
  int rows = 0;
  for (size_t i = 0; i < feeds.size(); ++i) {
    const auto count = static_cast<int>(feeds[i].tokens.size());
    for (int begin = 0; begin < count;) {
      const int end = std::min(count, begin + options_.chunk - rows);
      pieces.push_back({static_cast<int>(i), begin, end});
      rows += end - begin;
      begin = end;
      if (rows == options_.chunk) {
        compute(feeds, first_slots, pieces, sink, probe);
        pieces.clear();
        rows = 0;
      }
    }
  }
  if (!pieces.empty()) compute(feeds, first_slots, pieces, sink, probe);
  return model_->backend().status();
}

void Session::compute(std::span<const Feed> feeds, std::span<const int> first_slots,
                      std::span<const Piece> pieces, const RowsSink& sink, const QueryProbe& probe) {
  std::vector<TokenId> tokens;
  std::vector<BatchSequence> batch;
  std::vector<Asked> asked;
  std::vector<int> asked_rows;
  for (const Piece& piece : pieces) {
    const Feed& feed = feeds[piece.feed];
    batch.push_back({feed.cache, first_slots[piece.feed] + piece.begin, piece.end - piece.begin,
                     static_cast<int>(tokens.size())});
    for (int t = piece.begin; t < piece.end; ++t) {
      const bool last = t + 1 == static_cast<int>(feed.tokens.size());
      if (feed.wanted == Wanted::kAll || (feed.wanted == Wanted::kLast && last)) {
        asked.push_back({piece.feed, t});
        asked_rows.push_back(static_cast<int>(tokens.size()));
      }
      tokens.push_back(feed.tokens[t]);
    }
  }
  model_->forward(tokens, batch, activations_, probe);
  for (size_t first = 0; first < asked.size(); first += Model::kLogitRows) {
    const size_t n = std::min<size_t>(Model::kLogitRows, asked.size() - first);
    model_->logits(std::span(asked_rows).subspan(first, n), activations_);
    sink(std::span(asked).subspan(first, n));
  }
}

Result<std::vector<float>> Session::feed(KvCache& cache, std::span<const TokenId> tokens) {
  if (tokens.empty()) return Status::error("feed: no tokens");
  std::vector<float> out;
  const Feed feed{&cache, tokens, Wanted::kLast};
  KVFOLD_RETURN_IF_ERROR(this->feed(std::span(&feed, 1), [&](int, int, std::span<const float> logits) {
    out.assign(logits.begin(), logits.end());
  }));
  return out;
}

Result<TokenId> Session::feed(KvCache& cache, std::span<const TokenId> tokens, Sampler& sampler) {
  if (sampler.candidates() == 0) {
    KVFOLD_ASSIGN_OR_RETURN(const std::vector<float> logits, feed(cache, tokens));
    return sampler.sample(logits);
  }
  if (tokens.empty()) return Status::error("feed: no tokens");
  TokenId next = 0;
  const Feed feed{&cache, tokens, Wanted::kLast};
  KVFOLD_RETURN_IF_ERROR(
      this->feed(std::span(&feed, 1), sampler.candidates(),
                 [&](int, int, std::span<const TokenLogit> likeliest) { next = sampler.sample(likeliest); }));
  return next;
}

Result<KvCache> Session::recompute(const KvCache& cache, const Selection& selection) {
  KVFOLD_RETURN_IF_ERROR(check_cache(cache));
  KVFOLD_RETURN_IF_ERROR(selection.check(cache.shape(), cache.size()));
  if (selection.empty()) return cache.fork();
  KVFOLD_RETURN_IF_ERROR(check_window("recompute", static_cast<size_t>(cache.size())));
  for (const int row : selection.rows)  // a cache file may say anything
    KVFOLD_RETURN_IF_ERROR(check_token("recompute", cache.rows().tokens[row]));
  // Pages of their own for the rows, in every lane, as the model computes them all.
  Selection rows = Selection::all(cache.shape(), cache.size());
  rows.rows = selection.rows;
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice old, extract(cache, rows));
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice fresh, noise(old, NoiseKind::kZero, 0));
  for (int lane = 0; lane < cache.shape().lanes(); ++lane)
    if (fresh.lanes.table(Part::kKey, lane).rows() != fresh.size())
      return Status::error(fmt::format("recompute: layer {} head {} lacks some of the selected rows",
                                       lane / cache.shape().kv_heads, lane % cache.shape().kv_heads));
  KVFOLD_ASSIGN_OR_RETURN(const KvCache computed, overwrite(cache, fresh, selection.rows));

  for (size_t begin = 0; begin < selection.rows.size(); begin += static_cast<size_t>(options_.chunk)) {
    const size_t end = std::min(selection.rows.size(), begin + static_cast<size_t>(options_.chunk));
    std::vector<TokenId> tokens;
    std::vector<BatchSequence> batch;
    for (size_t i = begin; i < end; ++i) {
      const int slot = selection.rows[i];
      const bool continues = !batch.empty() && batch.back().slot + batch.back().count == slot;
      if (!continues) batch.push_back({&computed, slot, 0, static_cast<int>(tokens.size())});
      ++batch.back().count;
      tokens.push_back(cache.rows().tokens[slot]);
    }
    model_->forward(tokens, batch, activations_);
  }
  KVFOLD_RETURN_IF_ERROR(model_->backend().status());

  // Only what was asked for goes into the result.
  KVFOLD_ASSIGN_OR_RETURN(const KvSlice wanted, extract(computed, selection));
  KVFOLD_ASSIGN_OR_RETURN(const KvCache replaced, overwrite(cache, wanted, selection.rows));
  auto marked = std::make_shared<Rows>(cache.rows());
  for (const int row : selection.rows)
    marked->origins[row].operations |= static_cast<uint32_t>(Operation::kRecompute);
  return KvCache(replaced.lanes(), std::move(marked), cache.next_position());
}

}  // namespace kvfold
