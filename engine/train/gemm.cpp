#include "engine/train/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

// Of the depth, so that a panel of b (32 KB) stays in the nearest cache and a's block in the second. A
// multiple of every format's block.
constexpr int kDepth = 256;

// Up to kGemmColumns rows of a strided b^T side by side: out[k][j] = from[j * stride + k * step].
void pack_panel(const float* from, int64_t stride, int64_t step, int depth, int columns, float* out) {
  for (int k = 0; k < depth; ++k) {
    float* row = out + static_cast<int64_t>(k) * kGemmColumns;
    const float* in = from + k * step;
    for (int j = 0; j < columns; ++j) row[j] = in[j * stride];
    std::fill(row + columns, row + kGemmColumns, 0.0F);
  }
}

int64_t row_bytes(const MatrixView& w) {
  const FormatInfo& format = format_info(w.type);
  return w.columns / format.block_elements * format.block_bytes;
}

// Columns [begin, begin + count) of a row. REQUIRES: both are multiples of the format's block.
void decode(const MatrixView& w, int64_t row, int64_t begin, int count, float* out) {
  const FormatInfo& format = format_info(w.type);
  format.decode(w.data + row * row_bytes(w) + begin / format.block_elements * format.block_bytes, out,
                static_cast<size_t>(count));
}

int64_t panels_of(int64_t rows) { return (rows + kGemmRows - 1) / kGemmRows; }

size_t packed_a(const GemmSize& size) {
  return static_cast<size_t>(panels_of(size.rows) * kGemmRows * size.depth);
}

// Panels [begin, end) of a, in blocks of the depth: [blocks][panels][depth of the block][kGemmRows].
void pack_a(const Strided& a, const GemmSize& size, int64_t begin, int64_t end, float* packed) {
  const int64_t panels = panels_of(size.rows);
  for (int64_t p = begin; p < end; ++p)
    for (int64_t k0 = 0; k0 < size.depth; k0 += kDepth) {
      const int64_t depth = std::min<int64_t>(kDepth, size.depth - k0);
      float* out = packed + (k0 * panels + p * depth) * kGemmRows;
      for (int r = 0; r < kGemmRows; ++r) {
        const int64_t row = p * kGemmRows + r;
        const float* in = a.data + row * a.row_stride + k0 * a.column_stride;
        for (int64_t k = 0; k < depth; ++k)
          out[k * kGemmRows + r] = row < size.rows ? in[k * a.column_stride] : 0.0F;
      }
    }
}

// Where a block of the depth begins, and how deep it is.
struct Block {
  int64_t first;
  int depth;
};

// All rows of `columns` columns from `column` on, for one block of the depth: b in panels of kGemmColumns.
void tiles(const CpuKernels& kernels, const float* packed_a, const float* b, const GemmSize& size,
           Block block, int64_t column, int columns, const GemmOutput& c) {
  const int64_t panels = panels_of(size.rows);
  for (int j = 0; j < columns; j += kGemmColumns)
    for (int64_t p = 0; p < panels; ++p)
      kernels.gemm_tile({packed_a + (block.first * panels + p * block.depth) * kGemmRows,
                         b + static_cast<int64_t>(j) * block.depth, block.depth,
                         c.data + p * kGemmRows * c.row_stride + column + j, c.row_stride,
                         static_cast<int>(std::min<int64_t>(kGemmRows, size.rows - p * kGemmRows)),
                         std::min(kGemmColumns, columns - j), c.accumulate || block.first > 0});
}

void pack_columns(const Strided& b, Block block, int64_t column, int columns, float* out) {
  pack_panel(b.data + block.first * b.row_stride + column * b.column_stride, b.column_stride, b.row_stride,
             block.depth, columns, out);
}

Block block_at(int64_t first, int64_t depth) {
  return {first, static_cast<int>(std::min<int64_t>(kDepth, depth - first))};
}

}  // namespace

float* GemmScratch::grow(Buffer& buffer, size_t& have, size_t wanted) {
  if (wanted > have) {
    buffer.reset();
    auto* memory = static_cast<float*>(std::aligned_alloc(64, (wanted * sizeof(float) + 63) / 64 * 64));
    if (memory == nullptr) throw std::bad_alloc();
    buffer = {memory, std::free};
    have = wanted;
  }
  return buffer.get();
}

void multiply_alone(const CpuKernels& kernels, GemmScratch& scratch, const Strided& a, const Strided& b,
                    const GemmSize& size, const GemmOutput& c) {
  if (size.rows == 0 || size.columns == 0) return;
  float* packed = scratch.a(packed_a(size));
  pack_a(a, size, 0, panels_of(size.rows), packed);
  float* panel = scratch.b(size_t{kDepth} * kGemmColumns);
  for (int64_t column = 0; column < size.columns; column += kGemmColumns) {
    const auto columns = static_cast<int>(std::min<int64_t>(kGemmColumns, size.columns - column));
    for (int64_t k = 0; k < size.depth; k += kDepth) {
      const Block block = block_at(k, size.depth);
      pack_columns(b, block, column, columns, panel);
      tiles(kernels, packed, panel, size, block, column, columns, c);
    }
  }
}

// Threads take columns of c in units, and pack b for them block after block of the depth.
void Gemm::run(const Strided& a, const PackB& pack, int64_t unit, const GemmSize& size, const GemmOutput& c) {
  if (size.rows == 0 || size.columns == 0) return;
  float* packed = scratch_.a(packed_a(size));
  pool_->run(panels_of(size.rows),
             [&](int64_t begin, int64_t end, int) { pack_a(a, size, begin, end, packed); });
  const size_t share = static_cast<size_t>(kDepth * unit);
  float* packed_b = scratch_.b(share * static_cast<size_t>(pool_->threads()));
  pool_->run((size.columns + unit - 1) / unit, [&](int64_t begin, int64_t end, int thread) {
    float* b = packed_b + share * static_cast<size_t>(thread);
    for (int64_t k = 0; k < size.depth; k += kDepth) {
      const Block block = block_at(k, size.depth);
      for (int64_t u = begin; u < end; ++u) {
        const auto columns = static_cast<int>(std::min(unit, size.columns - u * unit));
        pack(block.first, block.depth, u * unit, columns, b);
        tiles(*kernels_, packed, b, size, block, u * unit, columns, c);
      }
    }
  });
}

void Gemm::multiply(const Strided& a, const Strided& b, const GemmSize& size, const GemmOutput& c) {
  run(
      a,
      [&](int64_t k, int depth, int64_t column, int columns, float* out) {
        pack_columns(b, {k, depth}, column, columns, out);
      },
      kGemmColumns, size, c);
}

void Gemm::forward(const float* x, int64_t rows, const MatrixView& w, const GemmOutput& y) {
  run(
      {x, w.columns},
      [&](int64_t k, int depth, int64_t column, int columns, float* out) {
        // Rows a little over a power of two apart do not fall into the same few sets of the cache.
        constexpr int kStride = kDepth + 16;
        float values[kGemmColumns * kStride];
        for (int j = 0; j < columns; ++j) decode(w, column + j, k, depth, values + j * kStride);
        pack_panel(values, kStride, 1, depth, columns, out);
      },
      kGemmColumns, {rows, w.rows, w.columns}, y);
}

void Gemm::backward(const float* y, int64_t rows, const MatrixView& w, const GemmOutput& x) {
  const int64_t unit = std::max(2 * kGemmColumns, format_info(w.type).block_elements);
  run(
      {y, w.rows},
      [&](int64_t k, int depth, int64_t column, int columns, float* out) {
        float values[kDepth];
        for (int i = 0; i < depth; ++i) {
          decode(w, k + i, column, columns, values);
          for (int j = 0; j < columns; j += kGemmColumns) {
            float* to = out + static_cast<int64_t>(j) * depth + static_cast<int64_t>(i) * kGemmColumns;
            const int n = std::min(kGemmColumns, columns - j);
            std::copy_n(values + j, n, to);
            std::fill(to + n, to + kGemmColumns, 0.0F);
          }
        }
      },
      unit, {rows, w.columns, w.rows}, x);
}

}  // namespace kvfold
