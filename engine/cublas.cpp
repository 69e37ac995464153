#include "engine/cublas.h"

#include <fmt/core.h>

#if defined(KVFOLD_SIMT)
#include <cublas_v2.h>
#else
#include <dlfcn.h>
#endif

namespace kvfold {
namespace {

// Signatures as the cuBLAS documentation has them, enumerations as int.
struct Calls {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*set_stream)(void* handle, cudaStream_t stream);
  int (*set_workspace)(void* handle, void* workspace, size_t bytes);
  int (*sgemm)(void* handle, int transa, int transb, int m, int n, int k, const float* alpha, const float* a,
               int lda, const float* b, int ldb, const float* beta, float* c, int ldc);
};

#if defined(KVFOLD_SIMT)
const Calls* find_calls() {
  static const Calls kCalls = {
      [](void** handle) { return static_cast<int>(cublasCreate(reinterpret_cast<cublasHandle_t*>(handle))); },
      [](void* handle) { return static_cast<int>(cublasDestroy(static_cast<cublasHandle_t>(handle))); },
      [](void* handle, cudaStream_t stream) {
        return static_cast<int>(cublasSetStream(static_cast<cublasHandle_t>(handle), stream));
      },
      [](void* handle, void* workspace, size_t bytes) {
        return static_cast<int>(cublasSetWorkspace(static_cast<cublasHandle_t>(handle), workspace, bytes));
      },
      [](void* handle, int ta, int tb, int m, int n, int k, const float* alpha, const float* a, int lda,
         const float* b, int ldb, const float* beta, float* c, int ldc) {
        return static_cast<int>(
            cublasSgemm(static_cast<cublasHandle_t>(handle), static_cast<cublasOperation_t>(ta),
                        static_cast<cublasOperation_t>(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc));
      }};
  return &kCalls;
}
#else
const Calls* find_calls() {
  static const Calls kCalls = [] {
    void* library = nullptr;
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"})
      if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    const auto find = [&](auto& call, const char* name) {
      call = library == nullptr ? nullptr
                                : reinterpret_cast<std::decay_t<decltype(call)> >(dlsym(library, name));
    };
    Calls calls{};
    find(calls.create, "cublasCreate_v2");
    find(calls.destroy, "cublasDestroy_v2");
    find(calls.set_stream, "cublasSetStream_v2");
    find(calls.set_workspace, "cublasSetWorkspace_v2");
    find(calls.sgemm, "cublasSgemm_v2");
    return calls;
  }();
  const bool whole = kCalls.create != nullptr && kCalls.destroy != nullptr && kCalls.set_stream != nullptr &&
                     kCalls.set_workspace != nullptr && kCalls.sgemm != nullptr;
  return whole ? &kCalls : nullptr;
}
#endif

Status blas_status(int code, const char* what) {
  return code == 0 ? Status() : Status::error(fmt::format("cublas: {}: status {}", what, code));
}

}  // namespace

Cublas::~Cublas() {
  if (handle_ != nullptr) find_calls()->destroy(handle_);
}

Status Cublas::open(cudaStream_t stream, std::span<std::byte> workspace) {
  if (handle_ != nullptr) return {};
  const Calls* calls = find_calls();
  if (calls == nullptr) return Status::error("cublas: no libcublas.so (11, 12 or 13) found");
  KVFOLD_RETURN_IF_ERROR(blas_status(calls->create(&handle_), "create"));
  KVFOLD_RETURN_IF_ERROR(blas_status(calls->set_stream(handle_, stream), "set stream"));
  // In this order, as a stream comes with cuBLAS' own workspace.
  return blas_status(calls->set_workspace(handle_, workspace.data(), workspace.size()), "set workspace");
}

Status Cublas::product(const float* w, const float* x, int rows, int outputs, int columns, float* y) {
  constexpr int kPlain = 0;
  constexpr int kTransposed = 1;
  const float one = 1;
  const float zero = 0;
  // cuBLAS counts by column, so row-major y is its y^T = w x^T.
  return blas_status(find_calls()->sgemm(handle_, kTransposed, kPlain, outputs, rows, columns, &one, w,
                                         columns, x, columns, &zero, y, outputs),
                     "sgemm");
}

}  // namespace kvfold
