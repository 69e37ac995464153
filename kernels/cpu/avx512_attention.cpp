// Attention over paged keys and values for AVX-512.
//
// A block's queries are flattened to vectors, one a token and query head, and worked on in tiles of these:
// the keys of a run, turned in registers, meet all vectors of a tile at once, and so do the values.
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/runs.h"

namespace kvfold::avx512 {
namespace {

// 16 keys of one dimension, or 16 dimensions of one value, as f32; lanes outside the mask are 0.
template <CacheType type>
struct PageReader {
  const std::byte* page;
  int head_dim;

  KVFOLD_INLINE __m512 load(Part part, int row, int dimension, __mmask16 lanes, bool all) const {
    const size_t index = kv_index(part, head_dim, row, dimension);
    if constexpr (type == CacheType::kF16) {
      const auto* at = reinterpret_cast<const uint16_t*>(page) + index;
      return _mm512_cvtph_ps(all ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))
                                 : _mm256_maskz_loadu_epi16(lanes, at));
    } else if constexpr (type == CacheType::kF32) {
      const auto* at = reinterpret_cast<const float*>(page) + index;
      return all ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(lanes, at);
    } else {
      const auto* scales = reinterpret_cast<const float*>(page + static_cast<size_t>(head_dim) * kPageRows) +
                           kv_scale_index(part, head_dim, row, dimension / 32);
      const auto* at = reinterpret_cast<const int8_t*>(page) + index;
      const __m128i bytes =
          all ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)) : _mm_maskz_loadu_epi8(lanes, at);
      const __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
      // Keys: a scale for each row. Values: 16 dimensions are of one group, as groups are of 32.
      if (part == Part::kValue) return _mm512_mul_ps(q, _mm512_set1_ps(*scales));
      return _mm512_mul_ps(q, all ? _mm512_loadu_ps(scales) : _mm512_maskz_loadu_ps(lanes, scales));
    }
  }
};

// One query head of one token.
struct Vector {
  const float* q;
  int32_t position;
  int rows;
  float *largest, *sum, *values;
};

// Memory of a tile. Dimensions are kept in the order of their use: first ones of pairs, second ones, the
// rest.
constexpr int kScoreStride = kAttentionBlock + kPageRows;  // the last run may write a whole page's lanes
struct Tile {
  int n = 0;
  Vector vectors[kAttentionTile];
  float* split;   // [n][kQueryStride], scaled, not turned
  float* turned;  // [n][kQueryStride], by the distance to the run's base
  float* scores;  // [n][kScoreStride]
  float* angles;  // [2 * pairs], for distances past the table
};

int dimension_of(const RopeView& rope, int index) {
  if (index >= 2 * rope.pairs || !rope.interleaved) return index;
  return index < rope.pairs ? 2 * index : 2 * (index - rope.pairs) + 1;
}

void split_query(const AttentionBlock& block, const float* q, float* out) {
  const int head_dim = block.pages.head_dim;
  if (!block.rope.interleaved) {  // as they are: a loop that becomes vector code
    for (int i = 0; i < head_dim; ++i) out[i] = q[i] * block.scale;
    return;
  }
  for (int i = 0; i < head_dim; ++i) out[i] = q[dimension_of(block.rope, i)] * block.scale;
}

// Turns all vectors of a tile to meet keys whose positions begin at `base`.
void turn_queries(const AttentionBlock& block, Tile& tile, int32_t base) {
  const RopeView& rope = block.rope;
  const int pairs = rope.pairs;
  Angles angles{};
  for (int v = 0; v < tile.n; ++v) {
    if (v == 0 || tile.vectors[v].position != tile.vectors[v - 1].position)
      angles = angles_of(rope, static_cast<int64_t>(tile.vectors[v].position) - base, tile.angles);
    const float* from = tile.split + v * kQueryStride;
    float* to = tile.turned + v * kQueryStride;
    const __m512 sign = _mm512_set1_ps(angles.sign);
    for (int i = 0; i < pairs; i += kLanes) {
      const __mmask16 lanes = first_lanes(pairs - i);
      const __m512 c = _mm512_maskz_loadu_ps(lanes, angles.cos + i);
      const __m512 s = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, angles.sin + i), sign);
      const __m512 a = _mm512_maskz_loadu_ps(lanes, from + i);
      const __m512 b = _mm512_maskz_loadu_ps(lanes, from + pairs + i);
      _mm512_mask_storeu_ps(to + i, lanes, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
      _mm512_mask_storeu_ps(to + pairs + i, lanes, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
    for (int d = 2 * pairs; d < block.pages.head_dim; ++d) to[d] = from[d];
  }
}

// A run's keys, turned as they are asked for. `all`: the run fills whole vectors of the page.
template <CacheType type, bool all>
struct PageKeys {
  PageReader<type> page;
  const RopeView& rope;
  int row, offset;
  int pair_step, pair_distance;  // dimensions from pair to pair, and between the two of a pair
  __mmask16 lanes[2];

  KVFOLD_INLINE PageKeys(const AttentionBlock& block, const Run& run)
      : page{run.page, block.pages.head_dim},
        rope(block.rope),
        row(run.row),
        offset(run.offset),
        pair_step(rope.interleaved ? 2 : 1),
        pair_distance(rope.interleaved ? 1 : rope.pairs) {
    for (int r = 0; r < 2; ++r)
      lanes[r] = run.count > r * kLanes ? first_lanes(run.count - r * kLanes) : __mmask16{0};
  }
  KVFOLD_INLINE void pair(int i, int r, __m512& a, __m512& b) const {
    const float* cos = rope.key_cos + i * kPageRows + offset + r * kLanes;
    const float* sin = rope.key_sin + i * kPageRows + offset + r * kLanes;
    const __m512 c = all ? _mm512_loadu_ps(cos) : _mm512_maskz_loadu_ps(lanes[r], cos);
    const __m512 s = all ? _mm512_loadu_ps(sin) : _mm512_maskz_loadu_ps(lanes[r], sin);
    const int first = i * pair_step;
    const __m512 ka = page.load(Part::kKey, row + r * kLanes, first, lanes[r], all);
    const __m512 kb = page.load(Part::kKey, row + r * kLanes, first + pair_distance, lanes[r], all);
    a = _mm512_fmsub_ps(ka, c, _mm512_mul_ps(kb, s));
    b = _mm512_fmadd_ps(ka, s, _mm512_mul_ps(kb, c));
  }
  KVFOLD_INLINE __m512 single(int d, int r) const {
    return page.load(Part::kKey, row + r * kLanes, d, lanes[r], all);
  }
};

// Scores of Q vectors with 16 * R rows, added up pair by pair. Lanes past the run's rows are written too, and
// overwritten by the next run.
template <int Q, int R, class Keys>
void score(const Keys keys, int pairs, int head_dim, Ahead ahead, const float* turned, float* scores) {
  __m512 sum[Q][R];
  for (int q = 0; q < Q; ++q)
    for (int r = 0; r < R; ++r) sum[q][r] = _mm512_setzero_ps();
  for (int i = 0; i < pairs; ++i) {
    ahead.ask();
    __m512 a[R], b[R];
    for (int r = 0; r < R; ++r) keys.pair(i, r, a[r], b[r]);
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
      const __m512 qa = _mm512_set1_ps(turned[q * kQueryStride + i]);
      const __m512 qb = _mm512_set1_ps(turned[q * kQueryStride + pairs + i]);
      for (int r = 0; r < R; ++r) sum[q][r] = _mm512_fmadd_ps(qb, b[r], _mm512_fmadd_ps(qa, a[r], sum[q][r]));
    }
  }
  for (int d = 2 * pairs; d < head_dim; ++d)
    for (int r = 0; r < R; ++r) {
      const __m512 k = keys.single(d, r);
      for (int q = 0; q < Q; ++q)
        sum[q][r] = _mm512_fmadd_ps(_mm512_set1_ps(turned[q * kQueryStride + d]), k, sum[q][r]);
    }
  for (int q = 0; q < Q; ++q)
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(scores + q * kScoreStride + r * kLanes, sum[q][r]);
}

template <CacheType type>
void score_run(const AttentionBlock& block, const Run& run, const std::byte* page_ahead, Tile& tile) {
  const int pairs = block.rope.pairs;
  const int head_dim = block.pages.head_dim;
  float* scores = tile.scores + run.index;
  const Ahead ahead(page_ahead, block.pages.page_bytes, std::max(pairs, 1));
  with_constant<kAttentionTile>(tile.n, [&](auto n) {
    constexpr int kQ = n();
    if (run.count == kPageRows)
      score<kQ, 2>(PageKeys<type, true>(block, run), pairs, head_dim, ahead, tile.turned, scores);
    else if (run.count > kLanes)
      score<kQ, 2>(PageKeys<type, false>(block, run), pairs, head_dim, ahead, tile.turned, scores);
    else
      score<kQ, 1>(PageKeys<type, false>(block, run), pairs, head_dim, ahead, tile.turned, scores);
  });
}

// A vector's scores become weights.
void soften(const Vector& vector, float* s) {
  const int rows = vector.rows;
  __m512 most = _mm512_set1_ps(s[0]);
  for (int r = 0; r < rows; r += kLanes) {
    const __mmask16 lanes = first_lanes(rows - r);
    most = _mm512_mask_max_ps(most, lanes, most, _mm512_maskz_loadu_ps(lanes, s + r));
  }
  const float largest = _mm512_reduce_max_ps(most);
  __m512 sum = _mm512_setzero_ps();
  for (int r = 0; r < rows; r += kLanes) {
    const __mmask16 lanes = first_lanes(rows - r);
    const __m512 weight =
        exp_vector(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, s + r), _mm512_set1_ps(largest)));
    _mm512_mask_storeu_ps(s + r, lanes, weight);
    sum = _mm512_mask_add_ps(sum, lanes, sum, weight);
  }
  *vector.largest = largest;
  *vector.sum = fold(sum);
}

constexpr int kMostSummed = 6;  // vectors whose values are added up at once
constexpr int kChunks = 4;      // of 16 dimensions

// Adds rows [begin, end) of C * 16 dimensions of a page's values to Q vectors' sums.
template <CacheType type, int Q, int C>
void add_values(const AttentionBlock& block, const PageRows& rows, Ahead ahead, const Tile& tile, int first,
                int begin, int dimension) {
  const int head_dim = block.pages.head_dim;
  const float* weights = tile.scores + first * kScoreStride;
  const bool all = dimension + C * kLanes <= head_dim;
  const __mmask16 lanes = all ? __mmask16{0xFFFF} : first_lanes(head_dim - dimension);
  const int from_row = std::max(0, begin - rows.index);
  __m512 sum[Q][C];
  for (int q = 0; q < Q; ++q)
    for (int c = 0; c < C; ++c) {
      const float* from = tile.vectors[first + q].values + dimension + c * kLanes;
      sum[q][c] = rows.index + from_row == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, from);
    }
  const PageReader<type> page{rows.page, head_dim};
  for (int r = from_row; r < rows.count; ++r) {
    ahead.ask();
    __m512 v[C];
    for (int c = 0; c < C; ++c)
      v[c] = page.load(Part::kValue, rows.row + r, dimension + c * kLanes, lanes, C > 1 || all);
#pragma GCC unroll 6
    for (int q = 0; q < Q; ++q) {
      const __m512 w = _mm512_set1_ps(weights[q * kScoreStride + rows.index + r]);
      for (int c = 0; c < C; ++c) sum[q][c] = _mm512_fmadd_ps(w, v[c], sum[q][c]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int c = 0; c < C; ++c)
      _mm512_mask_storeu_ps(tile.vectors[first + q].values + dimension + c * kLanes, lanes, sum[q][c]);
}

// Vectors [first, last) of the tile, rows [begin, end).
template <CacheType type>
void add_rows(const AttentionBlock& block, const Tile& tile, int first, int last, int begin, int end) {
  const int head_dim = block.pages.head_dim;
  const int groups = (last - first + kMostSummed - 1) / kMostSummed;
  const int size = (last - first + groups - 1) / groups;
  for_each_page(block, block.values, end, [&](const PageRows& rows) {
    if (rows.index + rows.count <= begin) return;
    for (int v = first; v < last; v += size)
      with_constant<kMostSummed>(std::min(size, last - v), [&](auto n) {
        const Ahead ahead(v == first ? rows.ahead : nullptr, block.pages.page_bytes, kPageRows);
        int d = 0;
        for (; d + kChunks * kLanes <= head_dim; d += kChunks * kLanes)
          add_values<type, n(), kChunks>(block, rows, ahead, tile, v, begin, d);
        for (; d < head_dim; d += kLanes) add_values<type, n(), 1>(block, rows, ahead, tile, v, begin, d);
      });
  });
}

template <CacheType type>
void attend_tile(const AttentionBlock& block, Tile& tile) {
  int most = 0;
  for (int v = 0; v < tile.n; ++v) {
    split_query(block, tile.vectors[v].q, tile.split + v * kQueryStride);
    most = std::max(most, tile.vectors[v].rows);
  }
  Run runs[kAttentionBlock];
  const int count = find_runs(block, most, runs);
  for (int i = 0; i < count; ++i) {
    if (i == 0 || runs[i].base != runs[i - 1].base) turn_queries(block, tile, runs[i].base);
    score_run<type>(block, runs[i], ahead_of_run(block, runs, count, i, most), tile);
  }
  for (int v = 0; v < tile.n; ++v) soften(tile.vectors[v], tile.scores + v * kScoreStride);
  for_rows_seen(
      std::span<const Vector>(tile.vectors, static_cast<size_t>(tile.n)),
      [&](int first, int last, int begin, int end) { add_rows<type>(block, tile, first, last, begin, end); });
}

template <CacheType type>
void attend(const AttentionBlock& block) {
  const int head_dim = block.pages.head_dim;
  Tile tile;
  tile.scores = block.scratch;
  tile.split = tile.scores + kAttentionTile * kScoreStride;
  const int vectors = head_dim <= kQueryStride ? kAttentionTile : 1;
  tile.turned = tile.split + vectors * std::max(head_dim, kQueryStride);
  tile.angles = tile.turned + vectors * std::max(head_dim, kQueryStride);
  for (const AttentionQuery& query : block.queries)
    for (int h = 0; h < block.heads; ++h) {
      tile.vectors[tile.n++] = {query.q + h * head_dim, query.position,     query.rows,
                                query.out.largest + h,  query.out.sums + h, query.out.values + h * head_dim};
      const bool last = &query == &block.queries.back() && h + 1 == block.heads;
      if (tile.n < vectors && !last) continue;
      attend_tile<type>(block, tile);
      tile.n = 0;
    }
}

}  // namespace

void attention_block(const AttentionBlock& block) {
  switch (block.pages.type) {
    case CacheType::kF16:
      return attend<CacheType::kF16>(block);
    case CacheType::kF32:
      return attend<CacheType::kF32>(block);
    case CacheType::kQ8:
      return attend<CacheType::kQ8>(block);
  }
}

void attention_combine(const AttentionPartial& parts, int blocks, int heads, int head_dim, float* out) {
  for (int h = 0; h < heads; ++h) {
    float largest = parts.largest[h];
    for (int b = 1; b < blocks; ++b) largest = std::max(largest, parts.largest[b * heads + h]);
    float sum = 0;
    float* values = out + static_cast<size_t>(h) * head_dim;
    std::fill_n(values, head_dim, 0.0F);
    for (int b = 0; b < blocks; ++b) {
      const float weight = exp_f32(parts.largest[b * heads + h] - largest);
      const float* part = parts.values + (static_cast<size_t>(b) * heads + h) * head_dim;
      sum = std::fma(weight, parts.sums[b * heads + h], sum);
      for (int d = 0; d < head_dim; ++d) values[d] = std::fma(weight, part[d], values[d]);
    }
    const float inverse = 1.0F / sum;
    for (int d = 0; d < head_dim; ++d) values[d] *= inverse;
  }
}

void store_row(CacheType type, Part part, int head_dim, std::byte* page, int row, const float* in) {
  if (type != CacheType::kF16) return kv_store_row(type, part, head_dim, page, row, in);
  auto* out = reinterpret_cast<uint16_t*>(page);
  for (int d = 0; d < head_dim; d += kLanes) {
    const __mmask16 lanes = first_lanes(head_dim - d);
    const __m256i halves =
        _mm512_cvtps_ph(_mm512_maskz_loadu_ps(lanes, in + d), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (part == Part::kValue) {
      _mm256_mask_storeu_epi16(out + kv_index(part, head_dim, row, d), lanes, halves);
      continue;
    }
    uint16_t each[kLanes];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(each), halves);
    for (int i = 0; i < std::min(kLanes, head_dim - d); ++i)
      out[kv_index(part, head_dim, row, d + i)] = each[i];
  }
}

}  // namespace kvfold::avx512
