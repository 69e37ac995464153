// Operations on the rows of caches that lie in device memory: what engine/kv/page_rows.cpp does on the host,
// to the same bits. A warp takes a run of up to 32 rows, a thread a row: sums run along a row in order, and
// the keys of neighbouring rows, which lie by dimension, are neighbours in memory. (Values are not; each
// thread reads on in cache lines of its own.)
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"

namespace kvfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// What a page holds: halves as their bits.
template <CacheType type>
using Element = std::conditional_t<type == CacheType::kF32, float,
                                   std::conditional_t<type == CacheType::kF16, uint16_t, int8_t>>;

// One row of a page: element d lies at first + d * step, and of q8 pages the scale of group g at first_scale
// + g * step.
template <CacheType type>
struct PageRow {
  std::byte* page;
  int head_dim;
  int first, step;
  int first_scale;

  __device__ __forceinline__ PageRow(const KvPagesView& pages, uint32_t id, Part part, int row)
      : page(pages.page(id)),
        head_dim(pages.head_dim),
        first(static_cast<int>(kv_index(part, head_dim, row, 0))),
        step(part == Part::kKey ? kPageRows : 1),
        first_scale(static_cast<int>(kv_scale_index(part, head_dim, row, 0))) {}

  __device__ __forceinline__ Element<type>& element(int d) const {
    return reinterpret_cast<Element<type>*>(page)[first + d * step];
  }
  __device__ __forceinline__ float& scale(int group) const {
    return reinterpret_cast<float*>(page + head_dim * kPageRows)[first_scale + group * step];
  }
  __device__ __forceinline__ float load(int d) const {
    if constexpr (type == CacheType::kF32) {
      return element(d);
    } else if constexpr (type == CacheType::kF16) {
      return from_half(element(d));
    } else {
      return static_cast<float>(element(d)) * scale(d / 32);
    }
  }
  // value(d) is asked for twice where pages are quantised; unrolled further, that spills registers. Whether
  // the page can hold all of them.
  template <class Value>
  __device__ __forceinline__ bool store(const Value& value) const {
    bool held = true;
    if constexpr (type == CacheType::kQ8) {
      for (int begin = 0; begin < head_dim; begin += 32) {
        const int end = min(begin + 32, head_dim);
        float largest = 0;
#pragma unroll 2
        for (int d = begin; d < end; ++d) {
          const float v = value(d);
          held = held && kv_holds(type, v);
          largest = fmaxf(largest, fabsf(v));
        }
        const float inverse = largest > 0 ? 127.0F / largest : 0.0F;
#pragma unroll 2
        for (int d = begin; d < end; ++d)
          element(d) = static_cast<int8_t>(__float2int_rn(value(d) * inverse));
        scale(begin / 32) = largest / 127.0F;
      }
    } else {
      for (int d = 0; d < head_dim; ++d) {
        const float v = value(d);
        held = held && kv_holds(type, v);
        if constexpr (type == CacheType::kF32) element(d) = v;
        if constexpr (type == CacheType::kF16) element(d) = to_half(v);
      }
    }
    return held;
  }
  __device__ __forceinline__ void copy(const PageRow& from) const {
    for (int d = 0; d < head_dim; ++d) element(d) = from.element(d);
    if constexpr (type == CacheType::kQ8) {
      for (int group = 0; group * 32 < head_dim; ++group) scale(group) = from.scale(group);
    }
  }
  __device__ __forceinline__ double norm() const {
    double squares = 0;
    for (int d = 0; d < head_dim; ++d) {
      const double x = load(d);
      squares += x * x;
    }
    return sqrt(squares);
  }
};

// The warp's number among those of the grid.
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
}

template <CacheType type>
__global__ void __launch_bounds__(kThreads)
    change_rows_kernel(const KvPagesView pages, const RowChange change, const RowRun* runs, int count,
                       unsigned* unheld) {
  const int index = warp_index();
  if (index >= count) return;
  const RowRun run = runs[index];
  const int row = static_cast<int>(threadIdx.x % 32);
  if (row >= run.count) return;
  const Part part = part_of(run.table);
  const PageRow<type> from(pages, run.from, part, run.from_row + row);
  const PageRow<type> other(pages, run.other, part, run.other_row + row);
  const PageRow<type> to(pages, run.to, part, run.to_row + row);
  double factor = change.factor;
  bool held = true;
  if (change.formula == RowFormula::kMix) {
    held = to.store(
        [&](int d) { return static_cast<float>((1 - factor) * from.load(d) + factor * other.load(d)); });
  } else if (change.formula == RowFormula::kAdd) {
    const float* vector = change.vectors.data() + static_cast<size_t>(run.table) * pages.head_dim;
    held = to.store([&](int d) { return static_cast<float>(from.load(d) + factor * vector[d]); });
  } else {
    if (change.formula != RowFormula::kScale) {
      const double found = from.norm();
      const double wanted =
          change.formula == RowFormula::kMatchRow ? other.norm() : change.wanted.data()[run.table];
      factor = found > 0 ? wanted / found : 1;
    }
    held = to.store([&](int d) { return static_cast<float>(factor * from.load(d)); });
  }
  if (!held) atomicOr(unheld, 1U);
}

template <CacheType type>
__global__ void __launch_bounds__(kThreads)
    row_norms_kernel(const KvPagesView pages, const RowRun* runs, int count, double* norms) {
  const int index = warp_index();
  if (index >= count) return;
  const RowRun run = runs[index];
  const int row = static_cast<int>(threadIdx.x % 32);
  norms[static_cast<size_t>(index) * kPageRows + row] =
      row < run.count ? PageRow<type>(pages, run.from, part_of(run.table), run.from_row + row).norm() : 0;
}

// Sent as the kernel's arguments, so that to copy needs no memory and cannot fail for want of it.
struct Copies {
  static constexpr int kMost = 256;
  int count;
  RowCopy rows[kMost];
};

template <CacheType type>
__global__ void __launch_bounds__(kThreads) copy_rows_kernel(const KvPagesView pages, const Copies copies) {
  const int index = warp_index();
  if (index >= copies.count) return;
  const RowCopy& copy = copies.rows[index];
  const int row = static_cast<int>(threadIdx.x % 32);
  if (row >= copy.count) return;
  PageRow<type>(pages, copy.to, copy.part, copy.to_row + row)
      .copy(PageRow<type>(pages, copy.from, copy.part, copy.from_row + row));
}

unsigned blocks_of(size_t runs) { return static_cast<unsigned>((runs + kWarps - 1) / kWarps); }

// launch(a page's type as a constant).
template <class Launch>
void launch_for(CacheType type, const Launch& launch) {
  switch (type) {
    case CacheType::kF16:
      return launch(std::integral_constant<CacheType, CacheType::kF16>());
    case CacheType::kF32:
      return launch(std::integral_constant<CacheType, CacheType::kF32>());
    case CacheType::kQ8:
      return launch(std::integral_constant<CacheType, CacheType::kQ8>());
  }
}

}  // namespace

void change_rows(const KvPagesView& pages, const RowChange& change, std::span<const RowRun> runs,
                 unsigned* unheld, cudaStream_t stream) {
  if (runs.empty()) return;
  launch_for(pages.type, [&](auto type) {
    KVFOLD_LAUNCH((change_rows_kernel<type()>), blocks_of(runs.size()), kThreads, 0, stream, pages, change,
                  runs.data(), static_cast<int>(runs.size()), unheld);
  });
}

void row_norms(const KvPagesView& pages, std::span<const RowRun> runs, double* norms, cudaStream_t stream) {
  if (runs.empty()) return;
  launch_for(pages.type, [&](auto type) {
    KVFOLD_LAUNCH((row_norms_kernel<type()>), blocks_of(runs.size()), kThreads, 0, stream, pages, runs.data(),
                  static_cast<int>(runs.size()), norms);
  });
}

void copy_rows(const KvPagesView& pages, std::span<const RowCopy> copies, cudaStream_t stream) {
  for (size_t first = 0; first < copies.size(); first += Copies::kMost) {
    Copies some{};
    some.count = static_cast<int>(std::min<size_t>(Copies::kMost, copies.size() - first));
    std::copy_n(&copies[first], some.count, some.rows);
    launch_for(pages.type, [&](auto type) {
      KVFOLD_LAUNCH((copy_rows_kernel<type()>), blocks_of(static_cast<size_t>(some.count)), kThreads, 0,
                    stream, pages, some);
    });
  }
}

}  // namespace kvfold::cuda
