// The CUDA backend. One stream; a decode step is recorded as a CUDA graph when it comes the second time and
// played from then on, with what changes from token to token (ids, positions, page tables) sent to fixed
// addresses before.
#include "engine/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <vector>

#include "engine/cublas.h"
#include "engine/cuda_batch.h"
#include "engine/cuda_device.h"
#include "engine/cuda_pages.h"
#include "engine/cuda_ranges.h"
#include "engine/cuda_rope.h"
#include "engine/gpu_memory.h"
#include "engine/model_source.h"
#include "engine/thread_pool.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/kernels.h"
#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

class CudaWeight final : public Weight {
 public:
  CudaWeight(const cuda::PackedView& view, DeviceMemory memory)
      : Weight(view.rows, view.columns), view_(view), memory_(std::move(memory)) {}
  const cuda::PackedView& view() const { return view_; }
  bool copied() const override { return true; }

 private:
  cuda::PackedView view_;
  DeviceMemory memory_;
};

const cuda::PackedView& view_of(const Weight& weight) {
  return static_cast<const CudaWeight&>(weight).view();
}
bool quantised(WeightType type) { return format_info(type).group != nullptr; }

class CudaBackend final : public Backend {
 public:
  CudaBackend(const BackendOptions& options, std::shared_ptr<const CudaDevice> device)
      : options_(options), device_(std::move(device)), threads_(ThreadPool::available()) {}
  ~CudaBackend() override {
    cudaStreamSynchronize(stream());
    forget_graphs();
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  std::string name() const override {
    const cudaDeviceProp& gpu = device_->properties();
    return fmt::format("cuda:{} ({}, {}.{})", device_->number(), gpu.name, gpu.major, gpu.minor);
  }
  Result<std::string> plan(const ModelSource& source, const MemoryWanted& wanted) override;
  Result<std::unique_ptr<Weight>> prepare(const MatrixView& view) override;
  Result<std::unique_ptr<Weight>> prepare_table(const MatrixView& view) override { return prepare(view); }
  Result<std::shared_ptr<float>> allocate(size_t count) override;
  Result<std::shared_ptr<PagePool>> make_pool(CacheType type, int head_dim, size_t budget_bytes) override;
  void upload(std::span<const float> from, float* to) override;
  void download(const float* from, std::span<float> to) override;
  void likeliest(const float* logits, int rows, int columns, int k, std::span<TokenLogit> out) override;
  // What a kernel did wrong is known when it was waited for.
  Status status() const override {
    return status_.ok() ? cuda_status(cudaStreamSynchronize(stream()), "waiting for the GPU") : status_;
  }

  void begin_pass(const Pass& pass) override;
  void begin_layer(int layer) override {
    if (working()) ranges_.begin_layer(layer);
  }
  void end_pass() override;
  void embed(const Weight& table, std::span<const TokenId> ids, float* out) override;
  void rms_norm(const float* x, int rows, int columns, const float* weight, float epsilon,
                float* out) override;
  void linear(std::span<const Linear> products, const LinearInput& x) override;
  void gated_linear(const Weight& gate, const Weight& up, const LinearInput& x, float* out) override;
  void store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) override;
  void attention(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                 const RopeView& rope, const float* q, float* out) override;

 private:
  enum class Mode { kDirect, kRecord, kPlay };
  // What a recorded step depends on beside the contents of fixed addresses.
  using StepKey = std::tuple<const void*, const void*, int, int, int>;
  struct Step {
    int seen = 0;
    cudaGraphExec_t graph = nullptr;
  };
  // A SwiGLU that waits for the product that takes it, to be made as its input is quantised.
  struct Gated {
    const float* out = nullptr;
    int rows = 0;
    int columns = 0;
  };

  // Whether operations are to be queued. After an error, and while a recorded step is played, they are not.
  bool working() const { return mode_ != Mode::kPlay && status_.ok(); }
  void note(const Status& status) {
    if (status_.ok()) status_ = status;
  }
  void note(cudaError_t error, const char* what) { note(cuda_status(error, what)); }
  cudaStream_t stream() const { return device_->stream(); }
  template <class T>
  T* scratch(DeviceMemory& memory, size_t count, const char* what) {
    if (memory.bytes() < count * sizeof(T)) forget_graphs();
    device_->make_current();
    note(memory.reserve(count * sizeof(T), what));
    return memory.get<T>();
  }

  Status check_shared_memory(const ModelConfig& config, CacheType type) const;
  Status take_scratch(const GpuScratch& sizes);
  void forget_graphs();
  void finish_gated();
  cuda::QuantizedRows quantize(const LinearInput& x, int columns);
  const float* floats(const LinearInput& x, int columns);
  void integer_products(std::span<const cuda::Product> products, const LinearInput& x);
  void float_products(std::span<const cuda::Product> products, const LinearInput& x);
  bool in_integers(const cuda::PackedView& weight) const {
    return options_.cpu.precision == Precision::kInt8 && quantised(weight.type);
  }
  bool use_cublas(const cuda::Product& product, const LinearInput& x);
  void cublas_product(const cuda::Product& product, const float* x, int rows);

  BackendOptions options_;
  std::shared_ptr<const CudaDevice> device_;  // goes after cublas_, which works on its stream
  ThreadPool threads_;                        // for packing weights
  Cublas cublas_;
  Status status_;
  DeviceArena arena_;             // of the size that the plan has
  size_t pool_bytes_ = SIZE_MAX;  // what the plan leaves for pages
  CudaBatch batch_;
  PassRanges ranges_;
  CudaRope rope_;
  std::map<StepKey, Step> steps_;
  Mode mode_ = Mode::kDirect;
  Step* step_ = nullptr;
  int blocks_ = 1;  // of 256 rows, that attention is launched for
  int heads_ = 0;
  Gated gated_;
  // Scratch, kept between calls.
  DeviceMemory keys_, q_, scales_, gate_, up_, normed_, partials_, decoded_, blas_out_, workspace_;
};

// ---- memory ----

// What a block of threads keeps in shared memory grows with these dimensions.
Status CudaBackend::check_shared_memory(const ModelConfig& config, CacheType type) const {
  const size_t shared = device_->properties().sharedMemPerBlockOptin;
  struct {
    const char* name;
    int found, most;
  } const dimensions[] = {{"head_dim", config.head_dim, cuda::most_head_dim(type, shared)},
                          {"model_dim", config.model_dim, cuda::most_norm_columns(shared)}};
  for (const auto& [name, found, most] : dimensions)
    if (found > most)
      return Status::error(fmt::format("{} {}: at most {} on {}, whose blocks share {} KiB", name, found,
                                       most, this->name(), shared >> 10));
  return {};
}

Status CudaBackend::take_scratch(const GpuScratch& sizes) {
  forget_graphs();
  const std::array pieces = {std::pair{&keys_, sizes.keys},
                             std::pair{&q_, sizes.q},
                             std::pair{&scales_, sizes.scales},
                             std::pair{&gate_, sizes.gate},
                             std::pair{&up_, sizes.up},
                             std::pair{&normed_, sizes.normed},
                             std::pair{&partials_, sizes.partials},
                             std::pair{&decoded_, sizes.decoded},
                             std::pair{&blas_out_, sizes.blas_out},
                             std::pair{&workspace_, sizes.workspace}};
  for (const auto& [memory, bytes] : pieces) {
    if (bytes == 0) continue;
    KVFOLD_ASSIGN_OR_RETURN(*memory, arena_.take(bytes, "scratch"));
  }
  return {};
}

Result<std::string> CudaBackend::plan(const ModelSource& source, const MemoryWanted& wanted) {
  KVFOLD_RETURN_IF_ERROR(check_shared_memory(source.config, wanted.type).with_prefix(source.path + ": "));
  Gpu gpu{name(), 0, 0};
  device_->make_current();
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaMemGetInfo(&gpu.free, &gpu.total), "asking for free memory"));
  KVFOLD_ASSIGN_OR_RETURN(const GpuPlan plan, plan_gpu_memory(source, wanted, options_.prefill, gpu));
  KVFOLD_RETURN_IF_ERROR(arena_.reserve(plan.arena(), "weights and activations"));
  KVFOLD_RETURN_IF_ERROR(take_scratch(gpu_scratch(source, wanted.rows, options_.prefill)));
  pool_bytes_ = plan.pages;
  return describe(plan, gpu);
}

Result<std::unique_ptr<Weight>> CudaBackend::prepare(const MatrixView& view) {
  const size_t bytes = cuda::packed_layout(view.type, view.rows, view.columns).bytes;
  std::vector<std::byte> packed(bytes);
  threads_.run(cuda::packed_tiles(view.rows),
               [&](int64_t begin, int64_t end, int) { cuda::pack(view, begin, end, packed.data()); });
  device_->make_current();
  KVFOLD_ASSIGN_OR_RETURN(DeviceMemory memory, arena_.take(bytes, "a weight"));
  KVFOLD_RETURN_IF_ERROR(cuda_status(cudaMemcpy(memory.get(), packed.data(), bytes, cudaMemcpyHostToDevice),
                                     "sending a weight"));
  const cuda::PackedView device = cuda::packed_view(view.type, view.rows, view.columns, memory.get());
  return std::unique_ptr<Weight>(new CudaWeight(device, std::move(memory)));
}

Result<std::shared_ptr<float>> CudaBackend::allocate(size_t count) {
  device_->make_current();
  KVFOLD_ASSIGN_OR_RETURN(const DeviceMemory memory,
                          arena_.take(std::max(count, size_t{1}) * sizeof(float), "activations"));
  // Recorded steps may name memory that was there before and is here again.
  forget_graphs();
  return memory.share<float>();
}

Result<std::shared_ptr<PagePool>> CudaBackend::make_pool(CacheType type, int head_dim, size_t budget_bytes) {
  const size_t page = kv_page_bytes(type, head_dim);
  const size_t bytes = std::min(budget_bytes, pool_bytes_) / page * page;
  device_->make_current();
  DeviceMemory memory;
  KVFOLD_RETURN_IF_ERROR(memory.reserve(std::max(bytes, page), "cache pages"));
  return PagePool::create(type, head_dim, std::make_unique<CudaPages>(std::move(memory), device_), bytes);
}

void CudaBackend::upload(std::span<const float> from, float* to) {
  note(cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, stream()), "upload");
  note(cudaStreamSynchronize(stream()), "upload");
}

void CudaBackend::download(const float* from, std::span<float> to) {
  if (from == gated_.out) finish_gated();
  note(cudaGetLastError(), "a kernel");  // what made this may have been refused, and the copy still succeed
  note(cudaMemcpyAsync(to.data(), from, to.size_bytes(), cudaMemcpyDeviceToHost, stream()), "download");
  note(cudaStreamSynchronize(stream()), "download");
  if (!status_.ok()) std::fill(to.begin(), to.end(), 0.0F);
}

void CudaBackend::likeliest(const float* logits, int rows, int columns, int k, std::span<TokenLogit> out) {
  if (k > cuda::kMostLikeliest) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (int r = 0; r < rows; ++r) {
      download(logits + static_cast<size_t>(r) * columns, row);
      find_likeliest(row, out.subspan(static_cast<size_t>(r) * k, static_cast<size_t>(k)));
    }
    return;
  }
  auto* memory =
      scratch<uint64_t>(keys_, cuda::likeliest_scratch_keys(rows, columns, k), "the likeliest tokens");
  std::vector<uint64_t> keys(static_cast<size_t>(rows) * k);
  if (working()) {
    const NvtxRange range("likeliest");
    const uint64_t* found = cuda::likeliest(logits, rows, columns, k, memory, stream());
    note(cudaGetLastError(), "the likeliest tokens");
    note(
        cudaMemcpyAsync(keys.data(), found, keys.size() * sizeof(uint64_t), cudaMemcpyDeviceToHost, stream()),
        "the likeliest tokens");
    note(cudaStreamSynchronize(stream()), "the likeliest tokens");
  }
  for (size_t i = 0; i < keys.size(); ++i)
    out[i] =
        status_.ok() ? TokenLogit{cuda::key_index(keys[i]), cuda::key_value(keys[i])} : TokenLogit{0, 0.0F};
}

// ---- passes ----

void CudaBackend::forget_graphs() {
  for (auto& [key, step] : steps_)
    if (step.graph != nullptr) cudaGraphExecDestroy(step.graph);
  steps_.clear();
  step_ = nullptr;
}

void CudaBackend::begin_pass(const Pass& pass) {
  const bool decode = std::all_of(pass.batch.begin(), pass.batch.end(),
                                  [](const BatchSequence& sequence) { return sequence.count == 1; });
  ranges_.begin(decode ? "decode" : "prefill");
  note(cudaStreamSynchronize(stream()), "a pass");
  if (!status_.ok()) return;
  const std::byte* before = reinterpret_cast<const std::byte*>(batch_.view().spans);
  note(batch_.send(pass, stream()));
  if (rope_.differs(pass.rope)) {
    forget_graphs();  // the addresses and the reach are arguments of recorded kernels
    note(rope_.send(pass.rope, stream()));
  }
  heads_ = pass.heads;
  if (reinterpret_cast<const std::byte*>(batch_.view().spans) != before) forget_graphs();
  // Blocks are rounded up to a power of two, so that one recorded step serves many depths.
  blocks_ = 1;
  while (blocks_ * kAttentionBlock < batch_.most_rows()) blocks_ *= 2;
  mode_ = Mode::kDirect;
  step_ = nullptr;
  if (!status_.ok() || pass.watched || batch_.tokens() > cuda::kMostVecRows) return;
  step_ =
      &steps_[{pass.model, pass.activations, batch_.tokens(), static_cast<int>(pass.batch.size()), blocks_}];
  // The first time runs as it is, and scratch memory gets its size; the second is recorded.
  if (step_->graph != nullptr) {
    mode_ = Mode::kPlay;
  } else if (++step_->seen == 2) {
    note(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "recording a step");
    mode_ = Mode::kRecord;
  }
}

void CudaBackend::end_pass() {
  finish_gated();
  if (mode_ == Mode::kRecord) {
    cudaGraph_t graph = nullptr;
    note(cudaStreamEndCapture(stream(), &graph), "recording a step");
    if (status_.ok() && step_ != nullptr) {
      note(cudaGraphInstantiate(&step_->graph, graph, 0), "making a graph");
    }
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  if (status_.ok() && mode_ != Mode::kDirect && step_ != nullptr)
    note(cudaGraphLaunch(step_->graph, stream()), "playing a step");
  mode_ = Mode::kDirect;
  note(cudaGetLastError(), "a pass");
  ranges_.end();
}

// ---- operations ----

void CudaBackend::embed(const Weight& table, std::span<const TokenId> ids, float* out) {
  if (!working()) return;
  const NvtxRange range("embed");
  cuda::decode_rows(view_of(table), batch_.ids(), 0, static_cast<int>(ids.size()), out, stream());
}

void CudaBackend::rms_norm(const float* x, int rows, int columns, const float* weight, float epsilon,
                           float* out) {
  if (working()) cuda::norm(x, weight, epsilon, rows, columns, out, stream());
}

void CudaBackend::finish_gated() {
  const Gated gated = std::exchange(gated_, {});
  if (gated.out == nullptr || !working()) return;
  cuda::swiglu(gate_.get<float>(), up_.get<float>(), static_cast<size_t>(gated.rows) * gated.columns,
               const_cast<float*>(gated.out), stream());
}

cuda::QuantizedRows CudaBackend::quantize(const LinearInput& x, int columns) {
  const int groups = (columns + kGroup - 1) / kGroup;
  const size_t all = static_cast<size_t>(x.rows) * groups;
  const cuda::QuantizedRows out{scratch<int8_t>(q_, all * kGroup, "quantised activations"),
                                scratch<float>(scales_, all, "quantised activations"), groups};
  if (!working()) return out;
  if (x.norm != nullptr) {
    cuda::norm_quantize(x.x, x.norm, x.epsilon, x.rows, columns, out, stream());
  } else if (gated_.out == x.x) {
    gated_ = {};
    cuda::swiglu_quantize(gate_.get<float>(), up_.get<float>(), x.rows, columns, out, stream());
  } else {
    cuda::quantize(x.x, x.rows, columns, out, stream());
  }
  return out;
}

const float* CudaBackend::floats(const LinearInput& x, int columns) {
  if (gated_.out == x.x) finish_gated();
  if (x.norm == nullptr) return x.x;
  float* out = scratch<float>(normed_, static_cast<size_t>(x.rows) * columns, "normed activations");
  if (working()) cuda::norm(x.x, x.norm, x.epsilon, x.rows, columns, out, stream());
  return out;
}

void CudaBackend::integer_products(std::span<const cuda::Product> products, const LinearInput& x) {
  if (products.empty()) return;
  const cuda::QuantizedRows q = quantize(x, products[0].weight.columns);
  if (!working()) return;
  if (x.rows > cuda::kMostVecRows) {
    for (const cuda::Product& product : products) cuda::mat_tile(product, q, x.rows, stream());
    return;
  }
  for (size_t i = 0; i < products.size();) {
    size_t n = 1;
    while (i + n < products.size() && n < cuda::kMostProducts &&
           products[i + n].weight.type == products[i].weight.type)
      ++n;
    cuda::mat_vec(&products[i], static_cast<int>(n), q, x.rows, stream());
    i += n;
  }
}

void CudaBackend::float_products(std::span<const cuda::Product> products, const LinearInput& x) {
  if (products.empty()) return;
  const float* from = floats(x, products[0].weight.columns);
  if (!working()) return;
  for (const cuda::Product& product : products) cuda::mat_float(product, from, x.rows, stream());
}

void CudaBackend::cublas_product(const cuda::Product& product, const float* x, int rows) {
  const auto outputs = static_cast<size_t>(product.weight.rows);
  float* w = scratch<float>(decoded_, outputs * product.weight.columns, "a weight in f32");
  float* y = scratch<float>(blas_out_, outputs * rows, "a product of cuBLAS");
  if (!working()) return;
  cuda::decode_rows(product.weight, nullptr, 0, product.weight.rows, w, stream());
  note(cublas_.product(w, x, rows, product.weight.rows, product.weight.columns, y));
  if (working()) cuda::finish_product(y, product, rows, stream());
}

// Decides on first use, where that is asked for: each way runs twice, and the second time counts.
bool CudaBackend::use_cublas(const cuda::Product& product, const LinearInput& x) {
  if (x.rows <= cuda::kMostVecRows || options_.prefill == Prefill::kTiles) return false;
  auto* workspace = scratch<std::byte>(workspace_, kBlasWorkspaceBytes, "the workspace of cuBLAS");
  const Status opened = cublas_.open(stream(), {workspace, kBlasWorkspaceBytes});
  if (options_.prefill == Prefill::kCublas) {
    note(opened);
    return opened.ok();
  }
  options_.prefill = Prefill::kTiles;
  if (!opened.ok() || product.accumulate) return false;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  note(cudaEventCreate(&begin), "timing");
  note(cudaEventCreate(&end), "timing");
  const auto time = [&](auto run) {
    float milliseconds = 0;
    for (int round = 0; round < 2; ++round) {
      note(cudaEventRecord(begin, stream()), "timing");
      run();
      note(cudaEventRecord(end, stream()), "timing");
      note(cudaEventSynchronize(end), "timing");
      note(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    }
    return milliseconds;
  };
  const float tiles = time([&] {
    if (in_integers(product.weight)) {
      integer_products({&product, 1}, x);
    } else {
      float_products({&product, 1}, x);
    }
  });
  const float blas = time([&] { cublas_product(product, floats(x, product.weight.columns), x.rows); });
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  if (blas < tiles) options_.prefill = Prefill::kCublas;
  return blas < tiles;
}

void CudaBackend::linear(std::span<const Linear> products, const LinearInput& x) {
  if (mode_ == Mode::kPlay || !status_.ok() || products.empty()) return;
  const NvtxRange range("linear");
  if (gated_.out != nullptr && gated_.out != x.x) finish_gated();
  std::vector<cuda::Product> integers;
  std::vector<cuda::Product> rest;
  for (const Linear& linear : products) {
    const cuda::PackedView& weight = view_of(*linear.weight);
    (in_integers(weight) ? integers : rest).push_back({weight, linear.bias, linear.out, linear.accumulate});
  }
  if (use_cublas(integers.empty() ? rest[0] : integers[0], x)) {
    const float* from = floats(x, static_cast<int>(products[0].weight->columns()));
    for (const std::vector<cuda::Product>* list : {&integers, &rest})
      for (const cuda::Product& product : *list) cublas_product(product, from, x.rows);
    return;
  }
  integer_products(integers, x);
  float_products(rest, x);
}

void CudaBackend::gated_linear(const Weight& gate, const Weight& up, const LinearInput& x, float* out) {
  if (mode_ == Mode::kPlay || !status_.ok()) return;
  const size_t count = static_cast<size_t>(x.rows) * gate.rows();
  float* gate_out = scratch<float>(gate_, count, "a gate");
  float* up_out = scratch<float>(up_, count, "a gate");
  const std::array both = {Linear{&gate, nullptr, gate_out}, Linear{&up, nullptr, up_out}};
  linear(both, x);
  gated_ = {out, x.rows, static_cast<int>(gate.rows())};
}

void CudaBackend::store_kv(std::span<const BatchSequence> /*batch*/, int layer, const float* k,
                           const float* v) {
  if (!working()) return;
  const NvtxRange range("store");
  cuda::store_kv(batch_.view(), batch_.shape(heads_), layer, batch_.tokens(), k, v, stream());
}

void CudaBackend::attention(std::span<const BatchSequence> /*batch*/, int layer, const AttentionShape& shape,
                            const RopeView& /*rope*/, const float* q, float* out) {
  if (!working()) return;
  const NvtxRange range("attention");
  const size_t one = cuda::attention_scratch_floats(1, blocks_, shape.heads, shape.head_dim);
  const int most = static_cast<int>(std::max<size_t>(1, kGpuAttentionBytes / sizeof(float) / one));
  const int slice = std::min({most, batch_.tokens(), cuda::kMostAttentionTokens});
  auto* partials = scratch<float>(partials_, one * static_cast<size_t>(slice), "attention");
  if (!working()) return;
  const size_t count = static_cast<size_t>(slice) * blocks_ * shape.heads;
  for (int first = 0; first < batch_.tokens(); first += slice)
    cuda::attention(batch_.view(), batch_.shape(shape.heads), rope_.view(), layer, first,
                    std::min(slice, batch_.tokens() - first), blocks_,
                    1.0F / std::sqrt(static_cast<float>(shape.head_dim)), q,
                    {partials, partials + count, partials + 2 * count}, out, stream());
}

}  // namespace

Result<std::shared_ptr<Backend>> make_cuda_backend(const BackendOptions& options) {
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<const CudaDevice> device, CudaDevice::open(options.device));
  return std::shared_ptr<Backend>(new CudaBackend(options, std::move(device)));
}

namespace {

// This file is linked as an object, so that this runs. The tests' executor adds it by another name.
#if defined(KVFOLD_SIMT)
constexpr const char* kBackendName = "simt";
#else
constexpr const char* kBackendName = "cuda";
#endif
[[maybe_unused]] const bool kAdded = add_backend(kBackendName, make_cuda_backend);

}  // namespace
}  // namespace kvfold
