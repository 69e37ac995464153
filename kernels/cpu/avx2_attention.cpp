// Attention over paged keys and values for AVX2. As in avx512_attention.cpp, a block's queries are flattened
// to vectors, one a token and query head; here the keys and values of a run are first turned and widened into
// scratch memory, since 16 registers do not hold them beside the sums.
#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/runs.h"

namespace kvfold::avx2 {
namespace {

constexpr int kScoreStride = kAttentionBlock + kPageRows;

// Turned keys lie [head_dim][kPageRows], the two dimensions of a pair behind each other in order of use.
struct Tile {
  float* keys;
  float* turned;  // [head_dim] of one vector, in the same order
  float* angles;  // [2 * pairs], for distances past the table
  float* scores;  // [kScoreStride]
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

template <CacheType type>
void turn_keys(const AttentionBlock& block, const Run& run, float* out) {
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
void turn_query(const AttentionBlock& block, const float* q, int64_t distance, const Tile& tile) {
  const RopeView& rope = block.rope;
  const Angles angles = angles_of(rope, distance, tile.angles);
  for (int i = 0; i < rope.pairs; ++i) {
    const float a = q[dimension_of(rope, 2 * i)] * block.scale;
    const float b = q[dimension_of(rope, 2 * i + 1)] * block.scale;
    const float c = angles.cos[i];
    const float s = angles.sin[i] * angles.sign;
    tile.turned[2 * i] = std::fma(a, c, -(b * s));
    tile.turned[2 * i + 1] = std::fma(a, s, b * c);
  }
  for (int d = 2 * rope.pairs; d < block.pages.head_dim; ++d) tile.turned[d] = q[d] * block.scale;
}

// Scores of one vector with a run of turned keys. All 32 lanes are written; what is past the run's rows is
// overwritten by the next run.
void score_run(const Tile& tile, int head_dim, float* scores) {
  __m256 sum[4];
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (int d = 0; d < head_dim; ++d) {
    const __m256 q = _mm256_set1_ps(tile.turned[d]);
    for (int r = 0; r < 4; ++r)
      sum[r] = _mm256_fmadd_ps(q, _mm256_loadu_ps(tile.keys + d * kPageRows + r * kLanes), sum[r]);
  }
  for (int r = 0; r < 4; ++r) _mm256_storeu_ps(scores + r * kLanes, sum[r]);
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

template <CacheType type>
void add_values(const AttentionBlock& block, int rows, const float* weights, float* values) {
  const int head_dim = block.pages.head_dim;
  constexpr int kChunks = 8;
  for (int first = 0; first < head_dim; first += kChunks * kLanes) {
    const int left = head_dim - first;
    const int chunks = std::min(kChunks, (left + kLanes - 1) / kLanes);
    __m256 sum[kChunks];
    for (__m256& s : sum) s = _mm256_setzero_ps();
    for_each_page(block, block.values, rows, [&](const PageRows& from) {
      for (int r = 0; r < from.count; ++r) {
        const __m256 w = _mm256_set1_ps(weights[from.index + r]);
        if (left >= kChunks * kLanes) {
          for (int c = 0; c < kChunks; ++c)
            sum[c] = _mm256_fmadd_ps(
                w, load_value<type>(from.page, head_dim, from.row + r, first + c * kLanes, kLanes), sum[c]);
        } else {
          for (int c = 0; c < chunks; ++c)
            sum[c] = _mm256_fmadd_ps(
                w, load_value<type>(from.page, head_dim, from.row + r, first + c * kLanes, left - c * kLanes),
                sum[c]);
        }
      }
    });
    for (int c = 0; c < chunks; ++c)
      _mm256_maskstore_ps(values + first + c * kLanes, first_lanes(left - c * kLanes), sum[c]);
  }
}

template <CacheType type>
void attend(const AttentionBlock& block) {
  const int head_dim = block.pages.head_dim;
  Tile tile;
  tile.keys = block.scratch;
  tile.turned = tile.keys + static_cast<size_t>(head_dim) * kPageRows;
  tile.angles = tile.turned + head_dim;
  tile.scores = tile.angles + head_dim;
  // As many vectors at once as scratch holds scores for; the keys of a run are turned once for them.
  const int heads = block.heads;
  const int count = static_cast<int>(block.queries.size()) * heads;
  for (int first = 0; first < count; first += kAttentionTile) {
    const int last = std::min(first + kAttentionTile, count);
    int most = 0;
    for (int v = first; v < last; ++v) most = std::max(most, block.queries[v / heads].rows);
    Run runs[kAttentionBlock];
    const int found = find_runs(block, most, runs);
    for (const Run& run : std::span(runs, static_cast<size_t>(found))) {
      turn_keys<type>(block, run, tile.keys);
      for (int v = first; v < last; ++v) {
        const AttentionQuery& query = block.queries[v / heads];
        turn_query(block, query.q + v % heads * head_dim, static_cast<int64_t>(query.position) - run.base,
                   tile);
        score_run(tile, head_dim, tile.scores + (v - first) * kScoreStride + run.index);
      }
    }
    for (int v = first; v < last; ++v) {
      const AttentionQuery& query = block.queries[v / heads];
      const int h = v % heads;
      float* scores = tile.scores + (v - first) * kScoreStride;
      soften(query.rows, scores, query.out.largest + h, query.out.sums + h);
      add_values<type>(block, query.rows, scores, query.out.values + h * head_dim);
    }
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
