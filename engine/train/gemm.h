// Products of f32 matrices, blocked for the caches, on all threads of a pool: what training computes with.
// The kernels of a forward pass are made for few rows and quantised weights; these are made for hundreds of
// rows.
//
// Each output is one sum over the depth in order (gemm_tile of kernels/cpu/cpu.h), so results depend neither
// on threads nor on blocks nor on instruction sets.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "engine/thread_pool.h"
#include "kernels/cpu/cpu.h"
#include "kernels/views.h"

namespace kvfold {

// An f32 matrix in memory: element (r, c) at data[r * row_stride + c * column_stride].
struct Strided {
  const float* data;
  int64_t row_stride;
  int64_t column_stride = 1;
  Strided transposed() const { return {data, column_stride, row_stride}; }
};

// A result: element (r, c) at data[r * row_stride + c].
struct GemmOutput {
  float* data;
  int64_t row_stride;
  bool accumulate = false;  // add to what is there
};

struct GemmSize {
  int64_t rows, columns, depth;
};

// Memory that products keep from one to the next; grows, 64-byte aligned.
class GemmScratch {
 public:
  float* a(size_t count) { return grow(a_, a_size_, count); }
  float* b(size_t count) { return grow(b_, b_size_, count); }

 private:
  using Buffer = std::unique_ptr<float, void (*)(void*)>;
  static float* grow(Buffer& buffer, size_t& have, size_t wanted);
  Buffer a_{nullptr, nullptr}, b_{nullptr, nullptr};
  size_t a_size_ = 0, b_size_ = 0;
};

// c [rows, columns] = a [rows, depth] b [depth, columns] on this thread alone, for small matrices.
void multiply_alone(const CpuKernels& kernels, GemmScratch& scratch, const Strided& a, const Strided& b,
                    const GemmSize& size, const GemmOutput& c);

class Gemm {
 public:
  // Products run on `pool`, one after another. REQUIRES: `kernels` are supported here; both outlive this.
  Gemm(ThreadPool& pool, const CpuKernels& kernels) : pool_(&pool), kernels_(&kernels) {}

  ThreadPool& pool() const { return *pool_; }
  const CpuKernels& kernels() const { return *kernels_; }

  // c [rows, columns] = a [rows, depth] b [depth, columns].
  void multiply(const Strided& a, const Strided& b, const GemmSize& size, const GemmOutput& c);
  // y [rows, w.rows] = x [rows, w.columns] w^T, weights decoded as they are met: the way forward.
  void forward(const float* x, int64_t rows, const MatrixView& w, const GemmOutput& y);
  // x [rows, w.columns] = y [rows, w.rows] w: the way back, from gradients of outputs to those of inputs.
  void backward(const float* y, int64_t rows, const MatrixView& w, const GemmOutput& x);

 private:
  using PackB = std::function<void(int64_t k, int depth, int64_t column, int columns, float* out)>;
  void run(const Strided& a, const PackB& pack, int64_t unit, const GemmSize& size, const GemmOutput& c);

  ThreadPool* pool_;
  const CpuKernels* kernels_;
  GemmScratch scratch_;  // a in panels, and for each thread a block of b's
};

}  // namespace kvfold
