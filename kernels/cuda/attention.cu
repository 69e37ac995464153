// Attention over paged lanes, and the way of new rows into their pages.
//
// A block of 256 threads takes one token, one KV head and 256 rows of that head's lane, for all query heads
// that share the KV head (in batches of 8): every page is read once for the group.
//   scores   A thread a row. Keys lie by dimension, so a warp's load is one dimension of up to 32
//   neighbouring rows.
//            Keys are turned by position % 32 as they are read; the query by its distance to 32 * (position /
//            32), once for each such base among the rows of a warp.
//   softmax  of the block's rows alone; blocks are joined afterwards, in order.
//   values   Rows are brought to shared memory 32 at a time, with 16-byte loads, the next ones while these
//   are added;
//            a thread then adds up one (head, dimension) in row order.
// The order of every sum is that of kernels/cpu/cpu.h.
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/math.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lanes.cuh"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = kAttentionBlock;
constexpr int kWarps = kThreads / 32;
constexpr int kStage = kValueStage;

// The last span that begins at or before `at`, by slot or by row. REQUIRES: the first one does.
template <class Key>
__device__ int find_span(const DeviceSpan* spans, int count, int at, Key key) {
  int low = 0;
  int high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (key(spans[middle]) <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// ---- new rows ----

// A warp writes one token's K or V of one lane; a lane of the warp the dimensions l, l + 32, ...
template <CacheType type>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const DeviceBatch batch, const KvShape shape, int layer, int items, const float* k,
                 const float* v) {
  const int item = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (item >= items) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int part = item % 2;
  const int head = item / 2 % shape.kv_heads;
  const int row = item / 2 / shape.kv_heads;
  const int head_dim = shape.pages.head_dim;
  const DeviceToken token = batch.tokens[row];
  const DeviceTable table =
      batch.tables[(static_cast<size_t>(token.sequence) * shape.lanes + layer * shape.kv_heads + head) * 2 +
                   part];
  const DeviceSpan* spans = batch.spans + table.begin;
  const DeviceSpan span =
      spans[find_span(spans, table.count, token.slot, [](const DeviceSpan& s) { return s.slot; })];
  const int at = span.first + token.slot - span.slot;
  std::byte* page = shape.pages.page(span.page);
  const float* from = (part == 0 ? k : v) + (static_cast<size_t>(row) * shape.kv_heads + head) * head_dim;
  const Part what = part == 0 ? Part::kKey : Part::kValue;
  const auto index = [&](int d) { return part == 0 ? d * kPageRows + at : at * head_dim + d; };
  for (int group = 0; group * 32 < head_dim; ++group) {
    const int d = group * 32 + lane;
    const float x = d < head_dim ? from[d] : 0.0F;
    if constexpr (type == CacheType::kF32) {
      if (d < head_dim) reinterpret_cast<float*>(page)[index(d)] = x;
    } else if constexpr (type == CacheType::kF16) {
      if (d < head_dim) reinterpret_cast<unsigned short*>(page)[index(d)] = to_half(x);
    } else {
      float largest = fmaxf(0.0F, fabsf(x));
#pragma unroll
      for (int step = 16; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
      const float inverse = largest > 0 ? 127.0F / largest : 0.0F;
      if (d < head_dim)
        reinterpret_cast<int8_t*>(page)[index(d)] = static_cast<int8_t>(__float2int_rn(x * inverse));
      if (lane == 0) {
        auto* scales = reinterpret_cast<float*>(page + static_cast<size_t>(head_dim) * kPageRows);
        const int groups = (head_dim + 31) / 32;
        scales[what == Part::kKey ? group * kPageRows + at : at * groups + group] = largest / 127.0F;
      }
    }
  }
}

// ---- attention ----

struct AttentionArgs {
  DeviceBatch batch;
  KvShape shape;
  DeviceRope rope;
  int layer;
  int first;  // token
  int blocks;
  float scale;
  const float* q;
  AttentionScratch scratch;
};

// Where the rows of a block lie.
struct RowTable {
  uint32_t page[kAttentionBlock];
  uint16_t row[kAttentionBlock];
};

__device__ void find_rows(const DeviceBatch& batch, const DeviceTable& table, int begin, int rows,
                          RowTable& out, int32_t* slot) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= rows) return;
  const DeviceSpan* spans = batch.spans + table.begin;
  const DeviceSpan span =
      spans[find_span(spans, table.count, begin + i, [](const DeviceSpan& s) { return s.row; })];
  out.page[i] = span.page;
  out.row[i] = static_cast<uint16_t>(span.first + begin + i - span.row);
  if (slot != nullptr) *slot = span.slot + begin + i - span.row;
}

// Rows of the lane that a token sees: those whose slots are not behind its own.
__device__ int visible_rows(const DeviceBatch& batch, const DeviceTable& table, int slot) {
  const DeviceSpan* spans = batch.spans + table.begin;
  if (table.count == 0 || spans[0].slot > slot) return 0;
  const DeviceSpan span =
      spans[find_span(spans, table.count, slot, [](const DeviceSpan& s) { return s.slot; })];
  return span.row + min(static_cast<int>(span.count), slot + 1 - span.slot);
}

template <CacheType type>
__device__ __forceinline__ float load_key(const std::byte* page, int row, int dimension,
                                          const float* scales) {
  const int index = dimension * kPageRows + row;
  if constexpr (type == CacheType::kF16)
    return from_half(reinterpret_cast<const unsigned short*>(page)[index]);
  if constexpr (type == CacheType::kF32) return reinterpret_cast<const float*>(page)[index];
  return static_cast<float>(reinterpret_cast<const int8_t*>(page)[index]) *
         scales[dimension / 32 * kPageRows + row];
}

// cos and sin of a large angle in f64. Reduced by hand, as the library's own reduction needs local memory: a
// multiple of pi is taken off in two parts, each by one exact multiply-add.
__device__ void far_angle(double angle, float& c, float& s) {
  constexpr double kPi = 3.141592653589793116;
  constexpr double kPiRest = 1.2246467991473532e-16;
  const double turns = rint(angle / (2 * kPi));
  const double left = fma(-turns, 2 * kPiRest, fma(-turns, 2 * kPi, angle)) / kPi;
  double cosine;
  double sine;
  turn_by_pi(left, cosine, sine);
  c = static_cast<float>(cosine);
  s = static_cast<float>(sine);
}

// Turns the group's queries to meet keys whose positions share a base; by one warp.
__device__ void turn_queries(const AttentionArgs& a, const float* queries, int heads, int64_t distance,
                             float* turned) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int head_dim = a.shape.pages.head_dim;
  const DeviceRope& rope = a.rope;
  const int64_t magnitude = distance < 0 ? -distance : distance;
  for (int i = lane; i < rope.pairs; i += 32) {
    float c;
    float s;
    if (magnitude < rope.distances) {
      c = rope.query_cos[magnitude * rope.pairs + i];
      s = rope.query_sin[magnitude * rope.pairs + i];
    } else {
      far_angle(static_cast<double>(magnitude) * rope.frequencies[i], c, s);
    }
    s = distance < 0 ? -s : s;
    const int first = rope.interleaved ? 2 * i : i;
    const int second = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
    for (int h = 0; h < heads; ++h) {
      const float qa = queries[h * head_dim + first] * a.scale;
      const float qb = queries[h * head_dim + second] * a.scale;
      turned[h * head_dim + first] = __fmaf_rn(qa, c, -(qb * s));
      turned[h * head_dim + second] = __fmaf_rn(qa, s, qb * c);
    }
  }
  for (int d = 2 * rope.pairs + lane; d < head_dim; d += 32)
    for (int h = 0; h < heads; ++h) turned[h * head_dim + d] = queries[h * head_dim + d] * a.scale;
}

// The scores of one row for kHeads heads.
template <CacheType type, int kHeads>
__device__ void score_row(const AttentionArgs& a, const std::byte* page, int row, int offset,
                          const float* turned, float (&scores)[kHeads]) {
  const DeviceRope& rope = a.rope;
  const int head_dim = a.shape.pages.head_dim;
  const auto* scales = reinterpret_cast<const float*>(page + static_cast<size_t>(head_dim) * kPageRows);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) scores[h] = 0;
#pragma unroll 4
  for (int i = 0; i < rope.pairs; ++i) {
    const int first = rope.interleaved ? 2 * i : i;
    const int second = rope.interleaved ? 2 * i + 1 : i + rope.pairs;
    const float ka = load_key<type>(page, row, first, scales);
    const float kb = load_key<type>(page, row, second, scales);
    const float c = rope.key_cos[i * kPageRows + offset];
    const float s = rope.key_sin[i * kPageRows + offset];
    const float turned_a = __fmaf_rn(ka, c, -(kb * s));
    const float turned_b = __fmaf_rn(ka, s, kb * c);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      scores[h] = __fmaf_rn(turned[h * head_dim + first], turned_a, scores[h]);
      scores[h] = __fmaf_rn(turned[h * head_dim + second], turned_b, scores[h]);
    }
  }
  for (int d = 2 * rope.pairs; d < head_dim; ++d) {
    const float key = load_key<type>(page, row, d, scales);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) scores[h] = __fmaf_rn(turned[h * head_dim + d], key, scores[h]);
  }
}

// Scores of the block's rows, row by row of the thread; rows of a warp whose positions share a base go
// together.
template <CacheType type, int kHeads>
__device__ void score_rows(const AttentionArgs& a, const RowTable& table, int rows, int32_t row_position,
                           int32_t token_position, const float* queries, float* turned_of_warps,
                           float* scores) {
  const int i = static_cast<int>(threadIdx.x);
  const int head_dim = a.shape.pages.head_dim;
  float* turned = turned_of_warps + static_cast<size_t>(threadIdx.x / 32) * kHeads * head_dim;
  const int32_t base = row_position & ~(kPageRows - 1);
  unsigned waiting = __ballot_sync(kAllLanes, i < rows);
  while (waiting != 0) {
    const int32_t chosen = __shfl_sync(kAllLanes, base, __ffs(static_cast<int>(waiting)) - 1);
    turn_queries(a, queries, kHeads, static_cast<int64_t>(token_position) - chosen, turned);
    __syncwarp();
    const bool mine = i < rows && base == chosen;
    if (mine) {
      float sums[kHeads];
      score_row<type, kHeads>(a, a.shape.pages.page(table.page[i]), table.row[i], row_position - base, turned,
                              sums);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) scores[h * kAttentionBlock + i] = sums[h];
    }
    waiting &= ~__ballot_sync(kAllLanes, mine);
    __syncwarp();  // the next queries come where these were; a vote orders no memory
  }
}

// Scores become weights; the largest score and the sum of weights of head h go to the partial result. A warp
// a head.
__device__ void soften(int heads, int rows, float* scores, float* lanes, float* largest_out,
                       float* sums_out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int h = static_cast<int>(threadIdx.x) / 32; h < heads; h += kWarps) {
    float* s = scores + h * kAttentionBlock;
    float largest = s[0];
    for (int r = lane; r < rows; r += 32) largest = fmaxf(largest, s[r]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    __syncwarp();  // all have read s[0]
    for (int r = lane; r < rows; r += 32) s[r] = exp_f32(s[r] - largest);
    __syncwarp();
    if (lane < 16) {
      float sum = 0;
      for (int r = lane; r < rows; r += 16) sum += s[r];
      lanes[h * 16 + lane] = sum;
    }
    __syncwarp();
    if (lane == 0) {
      largest_out[h] = largest;
      sums_out[h] = fold16(lanes + h * 16);
    }
  }
}

// One piece of 16 bytes of value rows first .. first + kStage - 1 (q8: and of their scales).
struct ValueRows {
  const KvPagesView& pages;
  const RowTable& table;
  int rows;  // of the block
};

// Bytes of a value row with its scales, in pieces of 4 bytes and of 16.
template <CacheType type>
__device__ __forceinline__ int row_bytes(int head_dim) {
  return head_dim * element_bytes(type);
}

template <CacheType type>
__device__ __forceinline__ float staged_value(const unsigned char* rows, const float* scales, int head_dim,
                                              int row, int d) {
  const int index = row * head_dim + d;
  if constexpr (type == CacheType::kF16)
    return from_half(reinterpret_cast<const unsigned short*>(rows)[index]);
  if constexpr (type == CacheType::kF32) return reinterpret_cast<const float*>(rows)[index];
  return static_cast<float>(reinterpret_cast<const int8_t*>(rows)[index]) *
         scales[row * ((head_dim + 31) / 32) + d / 32];
}

// Brings value rows first .. of the block to shared memory, in units of T.
template <CacheType type, class T>
__device__ void stage_values(const ValueRows& v, int first, int count, T* to, float* scales) {
  const int head_dim = v.pages.head_dim;
  const int pieces = row_bytes<type>(head_dim) / static_cast<int>(sizeof(T));
  for (int i = static_cast<int>(threadIdx.x); i < count * pieces; i += kThreads) {
    const int r = first + i / pieces;
    const auto* page = reinterpret_cast<const T*>(v.pages.page(v.table.page[r]));
    to[i] = page[static_cast<size_t>(v.table.row[r]) * pieces + i % pieces];
  }
  if constexpr (type == CacheType::kQ8) {
    const int groups = (head_dim + 31) / 32;
    for (int i = static_cast<int>(threadIdx.x); i < count * groups; i += kThreads) {
      const int r = first + i / groups;
      const auto* page = reinterpret_cast<const float*>(v.pages.page(v.table.page[r]) +
                                                        static_cast<size_t>(head_dim) * kPageRows);
      scales[i] = page[v.table.row[r] * groups + i % groups];
    }
  }
}

constexpr int kMostSums = 8;  // (head, dimension) pairs of a thread

template <CacheType type>
__device__ void add_values(const ValueRows& v, int heads, const float* weights, unsigned char* stage,
                           float* out) {
  const int head_dim = v.pages.head_dim;
  const int pairs = heads * head_dim;
  float sums[kMostSums] = {};
  auto* scales = reinterpret_cast<float*>(stage + static_cast<size_t>(kStage) * row_bytes<type>(head_dim));
  for (int first = 0; first < v.rows; first += kStage) {
    const int count = min(kStage, v.rows - first);
    __syncthreads();
    if (row_bytes<type>(head_dim) % 16 == 0) {
      stage_values<type>(v, first, count, reinterpret_cast<uint4*>(stage), scales);
    } else {
      stage_values<type>(v, first, count, stage, scales);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kMostSums; ++n) {
      const int pair = n * kThreads + static_cast<int>(threadIdx.x);
      if (pair >= pairs) break;
      const float* weight = weights + pair / head_dim * kAttentionBlock + first;
      for (int r = 0; r < count; ++r)
        sums[n] =
            __fmaf_rn(weight[r], staged_value<type>(stage, scales, head_dim, r, pair % head_dim), sums[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kMostSums; ++n) {
    const int pair = n * kThreads + static_cast<int>(threadIdx.x);
    if (pair < pairs) out[pair] = sums[n];
  }
}

// grid: x block of rows, y KV head and batch of heads, z token.
template <CacheType type, int kHeads>
__global__ void __launch_bounds__(kThreads) attention_kernel(const AttentionArgs a, int first_head) {
  KVFOLD_DYNAMIC_SHARED(float, dynamic);
  __shared__ float scores[kHeads * kAttentionBlock];
  __shared__ float lanes[kHeads * 16];
  __shared__ RowTable table;
  const int head_dim = a.shape.pages.head_dim;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int lane = a.layer * a.shape.kv_heads + kv_head;
  const int token_index = a.first + static_cast<int>(blockIdx.z);
  const DeviceToken token = a.batch.tokens[token_index];
  const DeviceTable* tables =
      a.batch.tables + (static_cast<size_t>(token.sequence) * a.shape.lanes + lane) * 2;
  const int begin = static_cast<int>(blockIdx.x) * kAttentionBlock;
  const int rows = min(visible_rows(a.batch, tables[0], token.slot) - begin, kAttentionBlock);
  if (rows <= 0) return;

  const int i = static_cast<int>(threadIdx.x);
  int32_t slot = 0;
  find_rows(a.batch, tables[0], begin, rows, table, &slot);
  const int32_t position = i < rows ? a.batch.positions[a.batch.positions_begin[token.sequence] + slot] : 0;
  const size_t heads_before = static_cast<size_t>(kv_head) * a.shape.group + first_head;
  const float* queries =
      a.q + (static_cast<size_t>(token_index) * a.shape.kv_heads * a.shape.group + heads_before) * head_dim;
  score_rows<type, kHeads>(a, table, rows, position, token.position, queries, dynamic, scores);
  __syncthreads();
  const size_t partial =
      ((static_cast<size_t>(blockIdx.z) * a.shape.kv_heads + kv_head) * a.blocks + blockIdx.x) *
          a.shape.group +
      first_head;
  soften(kHeads, rows, scores, lanes, a.scratch.largest + partial, a.scratch.sums + partial);
  // No barrier: nobody looks at the table since the one above, and add_values begins with one.
  find_rows(a.batch, tables[1], begin, rows, table, nullptr);
  add_values<type>({a.shape.pages, table, rows}, kHeads, scores, reinterpret_cast<unsigned char*>(dynamic),
                   a.scratch.values + partial * head_dim);
}

// Joins a head's blocks in order; a block of threads a (token, head).
__global__ void combine_kernel(const AttentionArgs a, float* out) {
  const int head_dim = a.shape.pages.head_dim;
  const int heads = a.shape.kv_heads * a.shape.group;
  const int head = static_cast<int>(blockIdx.x) % heads;
  const int kv_head = head / a.shape.group;
  const int token_in_slice = static_cast<int>(blockIdx.x) / heads;
  const DeviceToken token = a.batch.tokens[a.first + token_in_slice];
  const int lane = a.layer * a.shape.kv_heads + kv_head;
  const DeviceTable table = a.batch.tables[(static_cast<size_t>(token.sequence) * a.shape.lanes + lane) * 2];
  const int rows = visible_rows(a.batch, table, token.slot);
  const int blocks = (rows + kAttentionBlock - 1) / kAttentionBlock;
  const size_t first =
      ((static_cast<size_t>(token_in_slice) * a.shape.kv_heads + kv_head) * a.blocks) * a.shape.group +
      head % a.shape.group;
  const auto at = [&](int b) { return first + static_cast<size_t>(b) * a.shape.group; };
  float largest = a.scratch.largest[at(0)];
  for (int b = 1; b < blocks; ++b) largest = fmaxf(largest, a.scratch.largest[at(b)]);
  float* to = out + (static_cast<size_t>(a.first + token_in_slice) * heads + head) * head_dim;
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += static_cast<int>(blockDim.x)) {
    float sum = 0;
    float value = 0;
    for (int b = 0; b < blocks; ++b) {
      const float weight = exp_f32(a.scratch.largest[at(b)] - largest);
      sum = __fmaf_rn(weight, a.scratch.sums[at(b)], sum);
      value = __fmaf_rn(weight, a.scratch.values[at(b) * head_dim + d], value);
    }
    to[d] = value * (1.0F / sum);
  }
}

// The attention kernel's own shared memory; its launch adds attention_shared().
constexpr size_t fixed_shared(int heads) {
  return static_cast<size_t>(heads) * (kAttentionBlock + 16) * sizeof(float) + sizeof(RowTable);
}
// Whether a block can take that many heads.
bool fits(CacheType type, int heads, int head_dim, size_t shared_bytes) {
  return heads * head_dim <= kMostSums * kThreads &&
         fixed_shared(heads) + attention_shared(type, heads, head_dim) <= shared_bytes;
}

template <CacheType type, int kHeads>
void launch_heads(const AttentionArgs& a, int first_head, int tokens, cudaStream_t stream) {
  const size_t shared = attention_shared(type, kHeads, a.shape.pages.head_dim);
  const dim3 grid(a.blocks, a.shape.kv_heads, tokens);
  allow_shared(attention_kernel<type, kHeads>, fixed_shared(kHeads), shared);
  KVFOLD_LAUNCH((attention_kernel<type, kHeads>), grid, kThreads, shared, stream, a, first_head);
}

template <CacheType type>
void launch(const AttentionArgs& a, int tokens, cudaStream_t stream) {
  for (int head = 0; head < a.shape.group;) {
    const int left = a.shape.group - head;
    const auto take = [&](int heads) {
      return left >= heads && fits(type, heads, a.shape.pages.head_dim, kCommonShared);
    };
    if (take(8)) {
      launch_heads<type, 8>(a, head, tokens, stream);
      head += 8;
    } else if (take(7)) {
      launch_heads<type, 7>(a, head, tokens, stream);
      head += 7;
    } else if (take(4)) {
      launch_heads<type, 4>(a, head, tokens, stream);
      head += 4;
    } else if (take(3)) {
      launch_heads<type, 3>(a, head, tokens, stream);
      head += 3;
    } else if (take(2)) {
      launch_heads<type, 2>(a, head, tokens, stream);
      head += 2;
    } else {
      launch_heads<type, 1>(a, head, tokens, stream);
      head += 1;
    }
  }
}

}  // namespace

void store_kv(const DeviceBatch& batch, const KvShape& shape, int layer, int rows, const float* k,
              const float* v, cudaStream_t stream) {
  const int items = rows * shape.kv_heads * 2;
  if (items == 0) return;
  const int blocks = (items + kWarps - 1) / kWarps;
  switch (shape.pages.type) {
    case CacheType::kF16:
      KVFOLD_LAUNCH((store_kernel<CacheType::kF16>), blocks, kThreads, 0, stream, batch, shape, layer, items,
                    k, v);
      break;
    case CacheType::kF32:
      KVFOLD_LAUNCH((store_kernel<CacheType::kF32>), blocks, kThreads, 0, stream, batch, shape, layer, items,
                    k, v);
      break;
    case CacheType::kQ8:
      KVFOLD_LAUNCH((store_kernel<CacheType::kQ8>), blocks, kThreads, 0, stream, batch, shape, layer, items,
                    k, v);
      break;
  }
}

void attention(const DeviceBatch& batch, const KvShape& shape, const DeviceRope& rope, int layer, int first,
               int tokens, int blocks, float scale, const float* q, const AttentionScratch& scratch,
               float* out, cudaStream_t stream) {
  if (tokens == 0) return;
  const AttentionArgs a{batch, shape, rope, layer, first, blocks, scale, q, scratch};
  switch (shape.pages.type) {
    case CacheType::kF16:
      launch<CacheType::kF16>(a, tokens, stream);
      break;
    case CacheType::kF32:
      launch<CacheType::kF32>(a, tokens, stream);
      break;
    case CacheType::kQ8:
      launch<CacheType::kQ8>(a, tokens, stream);
      break;
  }
  const int heads = shape.kv_heads * shape.group;
  KVFOLD_LAUNCH(combine_kernel, tokens * heads, shape.pages.head_dim <= 64 ? 64 : 128, 0, stream, a, out);
}

int most_head_dim(CacheType type, size_t shared_bytes) {
  int head_dim = 0;
  while (fits(type, 1, head_dim + 1, shared_bytes)) ++head_dim;
  return head_dim;
}

}  // namespace kvfold::cuda
