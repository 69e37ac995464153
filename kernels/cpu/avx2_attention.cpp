// Attention over paged keys and values for AVX2. As in avx512_attention.cpp, a block's queries are flattened
// to vectors, one a token and query head, and worked on in tiles of these; here the keys of a run are first
// turned and widened into scratch memory, since 16 registers do not hold them beside the sums.
#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/runs.h"

namespace kvfold::avx2 {
namespace {

constexpr int kScoreStride = kAttentionBlock + kPageRows;

constexpr int kMostAtOnce = 3;  // vectors whose sums, 4 registers each, fit beside what they are made of

// One query head of one token.
struct Vector {
  const float* q;
  int32_t position;
  int rows;
  float *largest, *sum, *values;
};

// Memory of a tile. Turned keys lie [head_dim][kPageRows], the two dimensions of a pair behind each other in
// order of use.
struct Tile {
  int n = 0;
  Vector vectors[kAttentionTile];
  float* keys;
  float* turned;  // [kMostAtOnce][head_dim], in the keys' order
  float* angles;  // [2 * pairs], for distances past the table
  float* scores;  // [n][kScoreStride]
};

int dimension_of(const RopeView& rope, int index) {
  if (index >= 2 * rope.pairs) return index;
  const int pair = index / 2;
  return rope.interleaved ? index : index % 2 * rope.pairs + pair;
}

// One dimension of a run's keys as f32 [kPageRows]; past the run's rows there may be anything.
template <CacheType type>
void load_keys(const AttentionBlock& block, const Run& run, int dimension, float* out) {
  const int head_dim = block.pages.head_dim;
  const size_t index = kv_index(Part::kKey, head_dim, run.row, dimension);
  if constexpr (type == CacheType::kF16) {
    const auto* keys = reinterpret_cast<const uint16_t*>(run.page) + index;
    for (int r = 0; r < run.count; r += kLanes) {
      __m128i halves = _mm_setzero_si128();
      if (run.count - r >= kLanes)
        halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + r));
      else
        std::memcpy(&halves, keys + r, sizeof(uint16_t) * (run.count - r));
      _mm256_storeu_ps(out + r, _mm256_cvtph_ps(halves));
    }
  } else if constexpr (type == CacheType::kF32) {
    std::memcpy(out, reinterpret_cast<const float*>(run.page) + index, sizeof(float) * run.count);
  } else {
    const auto* keys = reinterpret_cast<const int8_t*>(run.page) + index;
    const auto* scales =
        reinterpret_cast<const float*>(run.page + static_cast<size_t>(head_dim) * kPageRows) +
        kv_scale_index(Part::kKey, head_dim, run.row, dimension / 32);
    for (int r = 0; r < run.count; ++r) out[r] = static_cast<float>(keys[r]) * scales[r];
  }
}

// The same for 8 rows, of which all are the page's.
template <CacheType type>
KVFOLD_INLINE __m256 load_8_keys(const AttentionBlock& block, const Run& run, int dimension, int r) {
  const int head_dim = block.pages.head_dim;
  const size_t index = kv_index(Part::kKey, head_dim, run.row + r, dimension);
  if constexpr (type == CacheType::kF16) {
    const auto* at = reinterpret_cast<const uint16_t*>(run.page) + index;
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  } else if constexpr (type == CacheType::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(run.page) + index);
  } else {
    const auto* at = reinterpret_cast<const int8_t*>(run.page) + index;
    const auto* scales =
        reinterpret_cast<const float*>(run.page + static_cast<size_t>(head_dim) * kPageRows) +
        kv_scale_index(Part::kKey, head_dim, run.row + r, dimension / 32);
    const __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_loadu_ps(scales));
  }
}

// The keys of a whole page in a row of positions, as most are.
template <CacheType type>
void turn_whole_page(const AttentionBlock& block, const Run& run, float* out) {
  const RopeView& rope = block.rope;
  const int step = rope.interleaved ? 2 : 1;
  const int distance = rope.interleaved ? 1 : rope.pairs;
  for (int i = 0; i < rope.pairs; ++i)
    for (int r = 0; r < kPageRows; r += kLanes) {
      const __m256 c = _mm256_loadu_ps(rope.key_cos + i * kPageRows + r);
      const __m256 s = _mm256_loadu_ps(rope.key_sin + i * kPageRows + r);
      const __m256 a = load_8_keys<type>(block, run, i * step, r);
      const __m256 b = load_8_keys<type>(block, run, i * step + distance, r);
      float* to = out + 2 * i * kPageRows + r;
      _mm256_storeu_ps(to, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
      _mm256_storeu_ps(to + kPageRows, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
    }
  for (int d = 2 * rope.pairs; d < block.pages.head_dim; ++d)
    for (int r = 0; r < kPageRows; r += kLanes)
      _mm256_storeu_ps(out + d * kPageRows + r, load_8_keys<type>(block, run, d, r));
}

template <CacheType type>
void turn_keys(const AttentionBlock& block, const Run& run, float* out) {
  if (run.count == kPageRows) return turn_whole_page<type>(block, run, out);
  const RopeView& rope = block.rope;
  alignas(32) float a[kPageRows];
  alignas(32) float b[kPageRows];
  for (int i = 0; i < rope.pairs; ++i) {
    load_keys<type>(block, run, dimension_of(rope, 2 * i), a);
    load_keys<type>(block, run, dimension_of(rope, 2 * i + 1), b);
    const float* c = rope.key_cos + i * kPageRows + run.offset;
    const float* s = rope.key_sin + i * kPageRows + run.offset;
    float* first = out + 2 * i * kPageRows;
    float* second = first + kPageRows;
    for (int r = 0; r < run.count; ++r) {
      first[r] = std::fma(a[r], c[r], -(b[r] * s[r]));
      second[r] = std::fma(a[r], s[r], b[r] * c[r]);
    }
  }
  for (int d = 2 * rope.pairs; d < block.pages.head_dim; ++d)
    load_keys<type>(block, run, d, out + d * kPageRows);
}

// A query scaled and turned, in the keys' order.
void turn_query(const AttentionBlock& block, const float* q, const Angles& angles, float* turned) {
  const RopeView& rope = block.rope;
  for (int i = 0; i < rope.pairs; ++i) {
    const float a = q[dimension_of(rope, 2 * i)] * block.scale;
    const float b = q[dimension_of(rope, 2 * i + 1)] * block.scale;
    const float c = angles.cos[i];
    const float s = angles.sin[i] * angles.sign;
    turned[2 * i] = std::fma(a, c, -(b * s));
    turned[2 * i + 1] = std::fma(a, s, b * c);
  }
  for (int d = 2 * rope.pairs; d < block.pages.head_dim; ++d) turned[d] = q[d] * block.scale;
}

// Scores of Q vectors with a run of turned keys. All 32 lanes are written; what is past the run's rows is
// overwritten by the next run.
template <int Q>
void score(const float* keys, int head_dim, const float* turned, Ahead ahead, float* scores) {
  constexpr int kVectors = kPageRows / kLanes;
  __m256 sum[Q][kVectors];
  for (int q = 0; q < Q; ++q)
    for (__m256& s : sum[q]) s = _mm256_setzero_ps();
  for (int d = 0; d < head_dim; ++d) {
    ahead.ask();
    __m256 x[Q];
    for (int q = 0; q < Q; ++q) x[q] = _mm256_set1_ps(turned[q * head_dim + d]);
    for (int r = 0; r < kVectors; ++r) {
      const __m256 k = _mm256_loadu_ps(keys + d * kPageRows + r * kLanes);
      for (int q = 0; q < Q; ++q) sum[q][r] = _mm256_fmadd_ps(x[q], k, sum[q][r]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int r = 0; r < kVectors; ++r) _mm256_storeu_ps(scores + q * kScoreStride + r * kLanes, sum[q][r]);
}

// Scores of all vectors of a tile with a run of turned keys.
void score_run(const AttentionBlock& block, const Tile& tile, const Run& run, const std::byte* page_ahead) {
  const int head_dim = block.pages.head_dim;
  Angles angles{};
  for (int v = 0; v < tile.n; v += kMostAtOnce) {
    const int n = std::min(kMostAtOnce, tile.n - v);
    for (int i = 0; i < n; ++i) {
      const Vector& vector = tile.vectors[v + i];
      if (v + i == 0 || vector.position != tile.vectors[v + i - 1].position)
        angles = angles_of(block.rope, static_cast<int64_t>(vector.position) - run.base, tile.angles);
      turn_query(block, vector.q, angles, tile.turned + i * head_dim);
    }
    const Ahead ahead(v == 0 ? page_ahead : nullptr, block.pages.page_bytes, head_dim);
    with_constant<kMostAtOnce>(n, [&](auto count) {
      score<count()>(tile.keys, head_dim, tile.turned, ahead, tile.scores + v * kScoreStride + run.index);
    });
  }
}

// Scores become weights; the sum's 16 lanes are two vectors.
void soften(int rows, float* s, float* largest_out, float* sum_out) {
  float largest = s[0];
  for (int r = 1; r < rows; ++r) largest = std::max(largest, s[r]);
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int r = 0; r < rows; r += kLanes) {
    const __m256i lanes = first_lanes(rows - r);
    const __m256 weight =
        _mm256_and_ps(exp_vector(_mm256_sub_ps(_mm256_maskload_ps(s + r, lanes), _mm256_set1_ps(largest))),
                      _mm256_castsi256_ps(lanes));
    _mm256_storeu_ps(s + r, weight);
    __m256& sum = sums[r / kLanes % 2];
    sum = _mm256_add_ps(sum, weight);
  }
  float lanes[16];
  _mm256_storeu_ps(lanes, sums[0]);
  _mm256_storeu_ps(lanes + kLanes, sums[1]);
  *largest_out = largest;
  *sum_out = fold16(lanes);
}

// 8 dimensions of a value; lanes past `n` are anything.
template <CacheType type>
KVFOLD_INLINE __m256 load_value(const std::byte* page, int head_dim, int row, int dimension, int n) {
  const size_t index = kv_index(Part::kValue, head_dim, row, dimension);
  if constexpr (type == CacheType::kF32) {
    const auto* at = reinterpret_cast<const float*>(page) + index;
    return n >= kLanes ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, first_lanes(n));
  } else if constexpr (type == CacheType::kF16) {
    __m128i halves = _mm_setzero_si128();
    std::memcpy(&halves, reinterpret_cast<const uint16_t*>(page) + index,
                sizeof(uint16_t) * std::min(n, kLanes));
    return _mm256_cvtph_ps(halves);
  } else {
    int64_t bytes = 0;
    std::memcpy(&bytes, reinterpret_cast<const int8_t*>(page) + index,
                static_cast<size_t>(std::min(n, kLanes)));
    const auto* scales = reinterpret_cast<const float*>(page + static_cast<size_t>(head_dim) * kPageRows);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes))),
                         _mm256_set1_ps(scales[kv_scale_index(Part::kValue, head_dim, row, dimension / 32)]));
  }
}

// Adds rows [begin, end) of C * 8 dimensions of the values to Q vectors' sums.
template <CacheType type, int Q, int C>
void add_values(const AttentionBlock& block, const Tile& tile, int first, int begin, int end, int dimension) {
  const int head_dim = block.pages.head_dim;
  const float* weights = tile.scores + first * kScoreStride;
  const int left = std::min(head_dim - dimension, C * kLanes);
  __m256 sum[Q][C];
  for (int q = 0; q < Q; ++q)
    for (int c = 0; c < C; ++c)
      sum[q][c] = begin == 0 ? _mm256_setzero_ps()
                             : _mm256_maskload_ps(tile.vectors[first + q].values + dimension + c * kLanes,
                                                  first_lanes(left - c * kLanes));
  for_each_page(block, block.values, end, [&](const PageRows& rows) {
    Ahead ahead(first == 0 && dimension == 0 ? rows.ahead : nullptr, block.pages.page_bytes, kPageRows);
    for (int r = std::max(0, begin - rows.index); r < rows.count; ++r) {
      ahead.ask();
      __m256 w[Q];
      for (int q = 0; q < Q; ++q) w[q] = _mm256_set1_ps(weights[q * kScoreStride + rows.index + r]);
      for (int c = 0; c < C; ++c) {
        // Only the last vector of dimensions can be short, and then it comes alone.
        const __m256 v = load_value<type>(rows.page, head_dim, rows.row + r, dimension + c * kLanes,
                                          C > 1 ? kLanes : left);
        for (int q = 0; q < Q; ++q) sum[q][c] = _mm256_fmadd_ps(w[q], v, sum[q][c]);
      }
    }
  });
  for (int q = 0; q < Q; ++q)
    for (int c = 0; c < C; ++c)
      _mm256_maskstore_ps(tile.vectors[first + q].values + dimension + c * kLanes,
                          first_lanes(left - c * kLanes), sum[q][c]);
}

// Vectors [first, last) of the tile, rows [begin, end).
template <CacheType type>
void add_rows(const AttentionBlock& block, const Tile& tile, int first, int last, int begin, int end) {
  constexpr int kChunks = 4;
  const int head_dim = block.pages.head_dim;
  for (int v = first; v < last; v += kMostAtOnce)
    with_constant<kMostAtOnce>(std::min(kMostAtOnce, last - v), [&](auto n) {
      int d = 0;
      for (; d + kChunks * kLanes <= head_dim; d += kChunks * kLanes)
        add_values<type, n(), kChunks>(block, tile, v, begin, end, d);
      for (; d < head_dim; d += kLanes) add_values<type, n(), 1>(block, tile, v, begin, end, d);
    });
}

template <CacheType type>
void attend_tile(const AttentionBlock& block, const Tile& tile) {
  int most = 0;
  for (int v = 0; v < tile.n; ++v) most = std::max(most, tile.vectors[v].rows);
  Run runs[kAttentionBlock];
  const int count = find_runs(block, most, runs);
  for (int i = 0; i < count; ++i) {
    turn_keys<type>(block, runs[i], tile.keys);
    score_run(block, tile, runs[i], ahead_of_run(block, runs, count, i, most));
  }
  for (int v = 0; v < tile.n; ++v)
    soften(tile.vectors[v].rows, tile.scores + v * kScoreStride, tile.vectors[v].largest,
           tile.vectors[v].sum);
  for_rows_seen(
      std::span<const Vector>(tile.vectors, static_cast<size_t>(tile.n)),
      [&](int first, int last, int begin, int end) { add_rows<type>(block, tile, first, last, begin, end); });
}

template <CacheType type>
void attend(const AttentionBlock& block) {
  const auto head_dim = static_cast<size_t>(block.pages.head_dim);
  Tile tile;
  tile.keys = block.scratch;
  tile.turned = tile.keys + head_dim * kPageRows;
  tile.angles = tile.turned + head_dim * kMostAtOnce;
  tile.scores = tile.angles + head_dim;
  for (const AttentionQuery& query : block.queries)
    for (int h = 0; h < block.heads; ++h) {
      const size_t at = static_cast<size_t>(h) * head_dim;
      tile.vectors[tile.n++] = {query.q + at,          query.position,     query.rows,
                                query.out.largest + h, query.out.sums + h, query.out.values + at};
      const bool last = &query == &block.queries.back() && h + 1 == block.heads;
      if (tile.n < kAttentionTile && !last) continue;
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

}  // namespace kvfold::avx2
