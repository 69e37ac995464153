// A session: a loaded model with a page pool, and the one way to feed tokens to caches.
//
//     text -> Tokenizer -> Session::feed -> Model::forward -> logits -> Sampler
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/kv/cache.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "engine/tokenizer/tokenizer.h"

namespace kvfold {

struct SessionOptions {
  CacheType cache_type = CacheType::kF16;
  size_t cache_bytes = size_t{4} << 30;  // budget of the page pool: address space until it is used
  int chunk = 512;                       // most tokens computed at once; never shows in a result
};

// Which logits a feed asks for.
enum class Wanted { kNone, kLast, kAll };

// Tokens to feed to one cache, behind its last row.
struct Feed {
  KvCache* cache;
  std::span<const TokenId> tokens;
  Wanted wanted = Wanted::kLast;
};

// Receives logits [vocab_size] of token `token` of feed `feed`, in order of tokens within a feed. The span
// lives for the call alone.
using LogitsSink = std::function<void(int feed, int token, std::span<const float> logits)>;

// The same of the likeliest tokens alone, likeliest first.
using LikeliestSink = std::function<void(int feed, int token, std::span<const TokenLogit> likeliest)>;

class Session {
 public:
  static Result<std::unique_ptr<Session>> create(std::shared_ptr<Model> model, const SessionOptions& options);

  Model& model() const { return *model_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::shared_ptr<PagePool>& pool() const { return pool_; }
  KvCache make_cache() const { return KvCache(pool_, model_->cache_shape()); }

  // Feeds several caches as one batch. A cache may appear once. Each one's bits are the same as when it is
  // fed alone, in any chunks. Errors: a token id outside the vocabulary, a cache of another pool or shape,
  // more rows than the model's attention window, the pool exhausted; every cache is then as it was.
  // `probe` sees every batch that is computed; each sequence's cache is one of the feeds'.
  Status feed(std::span<const Feed> feeds, const LogitsSink& sink, const QueryProbe& probe = {});
  // Feeds one cache and returns the logits after the last token. Errors: as above, or no tokens.
  Result<std::vector<float>> feed(KvCache& cache, std::span<const TokenId> tokens);

  // As the first, but of each row of logits only the k likeliest tokens (all of a smaller vocabulary), which
  // a GPU finds itself. REQUIRES: k >= 1.
  Status feed(std::span<const Feed> feeds, int k, const LikeliestSink& sink);
  // Feeds one cache and chooses the next token: as the sampler does from the logits. Errors: as above, or no
  // tokens.
  Result<TokenId> feed(KvCache& cache, std::span<const TokenId> tokens, Sampler& sampler);

  // The cache with the selected rows made again: their tokens run through the model at the slots and
  // positions where they stand, each seeing the rows before it, and what comes out replaces the selected
  // lanes and parts (chunk repair as in CacheBlend: Yao et al. 2024, arXiv:2405.16444). All layers are
  // computed whatever is selected. Errors: a cache of another pool or shape, a lane without a selected row,
  // more rows than the model's attention window, the pool exhausted.
  Result<KvCache> recompute(const KvCache& cache, const Selection& selection);

 private:
  Session(std::shared_ptr<Model> model, std::shared_ptr<const Tokenizer> tokenizer,
          std::shared_ptr<PagePool> pool, Activations activations, const SessionOptions& options);
  Status check(std::span<const Feed> feeds) const;
  Status check_cache(const KvCache& cache) const;
  Status check_token(const char* operation, TokenId id) const;
  Status check_window(const char* operation, size_t rows) const;
  struct Piece {
    int feed;
    int begin, end;  // tokens of the feed
  };
  // A token of a feed whose logits were asked for.
  struct Asked {
    int feed, token;
  };
  // Told that the activations hold the logits of `asked`, a row each.
  using RowsSink = std::function<void(std::span<const Asked> asked)>;
  Status feed_rows(std::span<const Feed> feeds, const RowsSink& sink, const QueryProbe& probe);
  void compute(std::span<const Feed> feeds, std::span<const int> first_slots, std::span<const Piece> pieces,
               const RowsSink& sink, const QueryProbe& probe);

  std::shared_ptr<Model> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<PagePool> pool_;
  Activations activations_;
  SessionOptions options_;
  std::vector<float> logits_;  // [vocab_size], what a sink is shown
  std::vector<TokenLogit> likeliest_;
};

}  // namespace kvfold
