// cuBLAS by definition: each element of C is one sum in double over k, rounded once. Real cuBLAS sums in
// another order; no test may ask for its bits.
#include <cstring>
#include <memory>

#include "kernels/half.h"
#include "tests/simt/device_state.h"
#include "tests/simt/executor.h"
#include "tests/simt/include/cublas_v2.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
  size_t workspace = 0;  // bytes that it was given
};

namespace {

struct Matrix {
  const std::byte* data;
  cudaDataType_t type;
  int rows, columns, leading;
  bool transposed;  // op(X)[i][j] is X[j][i]

  size_t element_bytes() const { return type == CUDA_R_16F ? 2 : 4; }
  size_t bytes() const { return (static_cast<size_t>(leading) * (columns - 1) + rows) * element_bytes(); }
  double at(int i, int j) const {
    const size_t index =
        transposed ? static_cast<size_t>(i) * leading + j : static_cast<size_t>(j) * leading + i;
    if (type == CUDA_R_16F) {
      uint16_t bits;
      std::memcpy(&bits, data + index * 2, 2);
      return kvfold::f16_to_f32(bits);
    }
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
};

struct Gemm {
  int m, n, k;
  float alpha, beta;
  Matrix a, b;
  std::byte* c;
  cudaDataType_t c_type;
  int ldc;

  float read(size_t index) const {
    if (c_type == CUDA_R_32F) return reinterpret_cast<const float*>(c)[index];
    return kvfold::f16_to_f32(reinterpret_cast<const uint16_t*>(c)[index]);
  }
  void write(size_t index, float value) const {
    if (c_type == CUDA_R_32F) {
      reinterpret_cast<float*>(c)[index] = value;
    } else {
      reinterpret_cast<uint16_t*>(c)[index] = kvfold::f32_to_f16(value);
    }
  }
  void run() const {
    const size_t element = c_type == CUDA_R_16F ? 2 : 4;
    for (int column = 0; column < n; ++column) {
      for (int row = 0; row < m; ++row) {
        double sum = 0;
        for (int i = 0; i < k; ++i) sum += a.at(row, i) * b.at(i, column);
        const size_t index = static_cast<size_t>(column) * ldc + row;
        // As BLAS has it, C is not read when beta is 0.
        const double kept = beta == 0.0F ? 0.0 : static_cast<double>(beta) * read(index);
        write(index, static_cast<float>(alpha * sum + kept));
      }
      simt::MemoryObserver* observer = simt::device().observer;
      if (observer != nullptr)
        observer->written(c + static_cast<size_t>(column) * ldc * element, m * element);
    }
  }
};

Matrix operand(const void* data, cudaDataType_t type, cublasOperation_t operation, int rows, int columns,
               int leading) {
  const bool transposed = operation == CUBLAS_OP_T;
  return {static_cast<const std::byte*>(data), type,    transposed ? columns : rows,
          transposed ? rows : columns,         leading, transposed};
}

cublasStatus_t check(const Gemm& gemm) {
  if (gemm.m < 0 || gemm.n < 0 || gemm.k < 0 || gemm.a.leading < gemm.a.rows ||
      gemm.b.leading < gemm.b.rows || gemm.ldc < gemm.m) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (gemm.m == 0 || gemm.n == 0) return CUBLAS_STATUS_SUCCESS;
  const size_t c_bytes =
      (static_cast<size_t>(gemm.ldc) * (gemm.n - 1) + gemm.m) * (gemm.c_type == CUDA_R_16F ? 2 : 4);
  const bool inputs = gemm.k == 0 || (simt::on_device(gemm.a.data, gemm.a.bytes()) &&
                                      simt::on_device(gemm.b.data, gemm.b.bytes()));
  if (!inputs || !simt::on_device(gemm.c, c_bytes)) {
    simt::report("cuBLAS: a matrix is not, or not all, in one allocation of the device");
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t queue(cublasHandle_t handle, const Gemm& gemm) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (simt::planted_failure(simt::Call::kBlas)) return CUBLAS_STATUS_EXECUTION_FAILED;
  const cublasStatus_t status = check(gemm);
  if (status != CUBLAS_STATUS_SUCCESS || gemm.m == 0 || gemm.n == 0) return status;
  CUstream_st* stream = simt::find_stream(handle->stream);
  if (stream == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  simt::device().use.blas_workspace = handle->workspace;
  const cudaError_t error = simt::enqueue(*stream, [gemm] {
    gemm.run();
    return cudaSuccess;
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // namespace

const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown cuBLAS status";
}

const char* cublasGetStatusString(cublasStatus_t status) { return cublasGetStatusName(status); }

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = nullptr;
  if (simt::planted_failure(simt::Call::kBlas)) return CUBLAS_STATUS_ALLOC_FAILED;
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->stream = stream;
  handle->workspace = 0;  // as the reference has it
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t /*mode*/) {
  return handle == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, size_t bytes) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (bytes > 0 && !simt::on_device(workspace, bytes)) return CUBLAS_STATUS_INVALID_VALUE;
  handle->workspace = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                           int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
                           const float* beta, float* c, int ldc) {
  return cublasGemmEx(handle, transa, transb, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c,
                      CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                            int n, int k, const void* alpha, const void* a, cudaDataType_t a_type, int lda,
                            const void* b, cudaDataType_t b_type, int ldb, const void* beta, void* c,
                            cudaDataType_t c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t /*algorithm*/) {
  if (compute == CUBLAS_COMPUTE_16F || a_type != b_type) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Gemm gemm{m,
                  n,
                  k,
                  *static_cast<const float*>(alpha),
                  *static_cast<const float*>(beta),
                  operand(a, a_type, transa, m, k, lda),
                  operand(b, b_type, transb, k, n, ldb),
                  static_cast<std::byte*>(c),
                  c_type,
                  ldc};
  return queue(handle, gemm);
}
