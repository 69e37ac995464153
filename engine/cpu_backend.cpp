// The CPU backend: cuts each operation over the threads. How it is cut never shows in a result, since every
// output element is summed whole by one thread, and attention is cut at fixed blocks of rows.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "engine/backend.h"
#include "engine/cpu_attention.h"
#include "engine/thread_pool.h"
#include "engine/weight_memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

class CpuWeight : public Weight {
 public:
  explicit CpuWeight(const MatrixView& view) : Weight(view.rows, view.columns), view_(view), packed_(view) {}
  CpuWeight(const MatrixView& view, std::shared_ptr<std::byte> packed)
      : Weight(view.rows, view.columns), view_(view), packed_(view), memory_(std::move(packed)) {
    packed_.data = memory_.get();
  }
  // As in the file, and as the kernels' integer products take it.
  const MatrixView& view() const { return view_; }
  const MatrixView& packed() const { return packed_; }
  bool copied() const override { return memory_ != nullptr; }

 private:
  MatrixView view_, packed_;
  std::shared_ptr<std::byte> memory_;
};

const CpuWeight& cpu_weight(const Weight& weight) { return static_cast<const CpuWeight&>(weight); }
const MatrixView& view_of(const Weight& weight) { return cpu_weight(weight).view(); }

std::shared_ptr<std::byte> allocate_bytes(size_t bytes) {
  constexpr size_t kAlignment = 64;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return {static_cast<std::byte*>(std::aligned_alloc(kAlignment, std::max(rounded, kAlignment))), std::free};
}

// Activation rows that pass by a strip of weights together and so stay in the nearer caches: whole panels.
constexpr int kRowsAtOnce = 64;
static_assert(kRowsAtOnce % kPanelRows == 0);
// Products, in units of weights times rows, that are joined with another weight's while they are in the
// nearer caches.
constexpr int64_t kProductsAtOnce = 1024;

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuKernels* kernels, const CpuOptions& options)
      : kernels_(kernels),
        precision_(options.precision),
        pool_(options.threads),
        attention_(kernels, &pool_),
        scratch_(pool_.threads()) {}

  std::string name() const override {
    return fmt::format("cpu ({}, {} threads)", kernels_->name, pool_.threads());
  }

  Result<std::unique_ptr<Weight>> prepare(const MatrixView& view) override;
  Result<std::unique_ptr<Weight>> prepare_table(const MatrixView& view) override {
    return std::unique_ptr<Weight>(new CpuWeight(view));
  }
  Result<std::shared_ptr<float>> allocate(size_t count) override {
    std::shared_ptr<std::byte> memory = allocate_bytes(count * sizeof(float));
    if (!memory) return Status::error(fmt::format("no memory for {} activations", count));
    return std::shared_ptr<float>(memory, reinterpret_cast<float*>(memory.get()));
  }
  void upload(std::span<const float> from, float* to) override { std::copy(from.begin(), from.end(), to); }
  void download(const float* from, std::span<float> to) override { std::copy_n(from, to.size(), to.begin()); }

  void likeliest(const float* logits, int rows, int columns, int k, std::span<TokenLogit> out) override {
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
      find_likeliest({logits + r * columns, static_cast<size_t>(columns)},
                     out.subspan(r * k, static_cast<size_t>(k)));
  }

  void embed(const Weight& table, std::span<const TokenId> ids, float* out) override {
    const MatrixView& view = view_of(table);
    const FormatInfo& format = format_info(view.type);
    const int64_t row_bytes = view.columns / format.block_elements * format.block_bytes;
    for (size_t i = 0; i < ids.size(); ++i)
      format.decode(view.data + ids[i] * row_bytes, out + i * view.columns,
                    static_cast<size_t>(view.columns));
  }

  void rms_norm(const float* x, int rows, int columns, const float* weight, float epsilon,
                float* out) override {
    pool_.run(rows, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        kernels_->rms_norm(x + r * columns, weight, columns, epsilon, out + r * columns);
    });
  }

  void linear(std::span<const Linear> products, const LinearInput& x) override;
  void gated_linear(const Weight& gate, const Weight& up, const LinearInput& x, float* out) override;
  int ffn_rows() const override { return kRowsAtOnce; }

  void store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) override;
  void attention(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                 const RopeView& rope, const float* q, float* out) override {
    attention_.run(batch, layer, shape, rope, q, out);
  }

 private:
  bool in_integers(const MatrixView& view) const {
    return precision_ == Precision::kInt8 && format_info(view.type).group != nullptr;
  }
  // A product's input as the kernels take it, in scratch: normed, and quantised where a weight wants that.
  struct Input {
    QuantizedView quantized;
    const float* x;  // [rows][columns]
    int columns;
  };
  Input take_input(const LinearInput& x, int columns, bool quantize);
  int64_t units(const Weight& weight) const {
    const MatrixView& view = view_of(weight);
    const int64_t unit = in_integers(view) ? kernels_->row_unit : 1;
    return (view.rows + unit - 1) / unit;
  }
  struct Strip;
  Strip multiply(const Weight& weight, int64_t begin, int64_t end, const Input& x, int row, int rows,
                 int thread, int buffer);

  const CpuKernels* kernels_;
  Precision precision_;
  ThreadPool pool_;
  CpuAttention attention_;
  WeightMemory weights_;
  // Scratch, kept between calls.
  std::vector<ActivationGroup> panels_;
  std::vector<float> normed_;
  struct ThreadScratch {
    std::vector<float> decoded;      // a row of a weight
    std::vector<float> products[2];  // [rows][outputs of a strip]
  };
  std::vector<ThreadScratch> scratch_;
};

Result<std::unique_ptr<Weight>> CpuBackend::prepare(const MatrixView& view) {
  if (kernels_->pack == nullptr || !in_integers(view)) return std::unique_ptr<Weight>(new CpuWeight(view));
  const size_t bytes = kernels_->packed_bytes(view);
  std::shared_ptr<std::byte> packed = weights_.allocate(bytes);
  if (!packed) return Status::error(fmt::format("no memory for {} bytes of packed weights", bytes));
  const FormatInfo& format = format_info(view.type);
  const int64_t row_bytes = view.columns / format.block_elements * format.block_bytes;
  pool_.run((view.rows + kernels_->row_unit - 1) / kernels_->row_unit, [&](int64_t begin, int64_t end, int) {
    const int64_t first = begin * kernels_->row_unit;
    const int64_t last = std::min(end * kernels_->row_unit, view.rows);
    populate(view.data + first * row_bytes, static_cast<size_t>((last - first) * row_bytes));
    kernels_->pack(view, begin, end, packed.get());
  });
  return std::unique_ptr<Weight>(new CpuWeight(view, std::move(packed)));
}

CpuBackend::Input CpuBackend::take_input(const LinearInput& x, int columns, bool quantize) {
  const int groups = (columns + kGroup - 1) / kGroup;
  const int panels = (x.rows + kPanelRows - 1) / kPanelRows;
  const size_t all = static_cast<size_t>(panels) * groups;
  if (quantize && panels_.size() < all) panels_.resize(all);
  if (x.norm != nullptr) normed_.resize(std::max(normed_.size(), static_cast<size_t>(x.rows) * columns));
  const float* from = x.norm != nullptr ? normed_.data() : x.x;
  pool_.run(panels, [&](int64_t begin, int64_t end, int) {
    const int64_t first = begin * kPanelRows;
    const int64_t last = std::min<int64_t>(end * kPanelRows, x.rows);
    if (x.norm != nullptr)
      for (int64_t r = first; r < last; ++r)
        kernels_->rms_norm(x.x + r * columns, x.norm, columns, x.epsilon, &normed_[r * columns]);
    if (quantize)
      kernels_->quantize(from + first * columns, static_cast<int>(last - first), columns,
                         &panels_[begin * groups]);
  });
  return {{panels_.data(), groups}, from, columns};
}

// Outputs [first, first + count) of some rows: values[t * count + i].
struct CpuBackend::Strip {
  const float* values;
  int64_t first;
  int64_t count;
};

CpuBackend::Strip CpuBackend::multiply(const Weight& weight, int64_t begin, int64_t end, const Input& x,
                                       int row, int rows, int thread, int buffer) {
  const CpuWeight& w = cpu_weight(weight);
  const bool integers = in_integers(w.view());
  const int64_t unit = integers ? kernels_->row_unit : 1;
  const int64_t first = begin * unit;
  const int64_t count = std::min(end * unit, weight.rows()) - first;
  std::vector<float>& products = scratch_[thread].products[buffer];
  if (products.size() < static_cast<size_t>(rows * count)) products.resize(rows * count);
  // The kernels count outputs from the matrix's first.
  float* y = products.data() - first;
  if (integers) {
    const int groups = x.quantized.groups;
    const QuantizedView part{x.quantized.data + static_cast<int64_t>(row / kPanelRows) * groups, groups};
    kernels_->matmul_q8(w.packed(), begin, end, part, rows, y, count);
  } else {
    std::vector<float>& decoded = scratch_[thread].decoded;
    decoded.resize(std::max(decoded.size(), static_cast<size_t>(x.columns)));
    kernels_->matmul_f32(w.view(), begin, end, x.x + static_cast<int64_t>(row) * x.columns, rows, y, count,
                         decoded.data());
  }
  return {products.data(), first, count};
}

// Puts a product where it belongs. `strip` begins at the batch's row `row`.
void finish(const Linear& linear, const float* values, int64_t first, int64_t count, int row, int rows) {
  const int64_t outputs = linear.weight->rows();
  for (int t = 0; t < rows; ++t) {
    const float* from = values + t * count;
    float* to = linear.out + (row + t) * outputs + first;
    const float* bias = linear.bias == nullptr ? nullptr : linear.bias + first;
    for (int64_t i = 0; i < count; ++i) {
      const float value = bias == nullptr ? from[i] : from[i] + bias[i];
      to[i] = linear.accumulate ? to[i] + value : value;
    }
  }
}

// All products' outputs are one range of work, so that the threads meet once.
void CpuBackend::linear(std::span<const Linear> products, const LinearInput& x) {
  int64_t all = 0;
  bool quantize = false;
  for (const Linear& linear : products) {
    all += units(*linear.weight);
    quantize = quantize || in_integers(view_of(*linear.weight));
  }
  const Input input = take_input(x, static_cast<int>(products[0].weight->columns()), quantize);
  pool_.run(all, [&](int64_t begin, int64_t end, int thread) {
    for (int row = 0; row < x.rows; row += kRowsAtOnce) {
      const int rows = std::min(kRowsAtOnce, x.rows - row);
      int64_t base = 0;
      for (const Linear& linear : products) {
        const int64_t n = units(*linear.weight);
        const int64_t first = std::max<int64_t>(begin - base, 0);
        const int64_t last = std::min(end - base, n);
        base += n;
        if (first >= last) continue;
        const Strip strip = multiply(*linear.weight, first, last, input, row, rows, thread, 0);
        finish(linear, strip.values, strip.first, strip.count, row, rows);
      }
    }
  });
}

void CpuBackend::gated_linear(const Weight& gate, const Weight& up, const LinearInput& x, float* out) {
  const bool same = in_integers(view_of(gate)) == in_integers(view_of(up));
  const bool quantize = in_integers(view_of(gate)) || in_integers(view_of(up));
  const Input input = take_input(x, static_cast<int>(gate.columns()), quantize);
  const int64_t outputs = gate.rows();
  // Cut by the coarser of the two weights' units.
  const int64_t unit = same ? 1 : kernels_->row_unit;
  const auto part = [&](const Weight& weight, int64_t begin, int64_t end, int row, int rows, int thread,
                        int buffer) {
    const int64_t per = same || in_integers(view_of(weight)) ? 1 : unit;
    return multiply(weight, begin * per, std::min(end * per, units(weight)), input, row, rows, thread,
                    buffer);
  };
  pool_.run(std::min(units(gate), units(up)), [&](int64_t begin, int64_t end, int thread) {
    for (int row = 0; row < x.rows; row += kRowsAtOnce) {
      const int rows = std::min(kRowsAtOnce, x.rows - row);
      const int64_t step = kProductsAtOnce / rows;
      for (int64_t first = begin; first < end; first += step) {
        const int64_t last = std::min(first + step, end);
        const Strip g = part(gate, first, last, row, rows, thread, 0);
        const Strip u = part(up, first, last, row, rows, thread, 1);
        for (int t = 0; t < rows; ++t)
          kernels_->swiglu(g.values + t * g.count, u.values + t * g.count, static_cast<int>(g.count),
                           out + (row + t) * outputs + g.first);
      }
    }
  });
}

void CpuBackend::store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) {
  const CacheShape shape = batch[0].cache->shape();
  const auto store = [&](const BatchSequence& sequence, Part part, int head) {
    const KvCache& cache = *sequence.cache;
    for (int i = 0; i < sequence.count; ++i) {
      const int64_t at = (static_cast<int64_t>(sequence.row + i) * shape.kv_heads + head) * shape.head_dim;
      const auto place = cache.row_place(part, shape.lane(layer, head), sequence.slot + i);
      kernels_->store_row(cache.type(), part, shape.head_dim, cache.pool()->write(place.page), place.row,
                          (part == Part::kKey ? k : v) + at);
    }
  };
  // Cut by lanes, so that no two threads write to one page.
  const int64_t parts = static_cast<int64_t>(2) * shape.kv_heads;
  const auto all = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (const BatchSequence& sequence : batch)
        store(sequence, i % 2 == 0 ? Part::kKey : Part::kValue, static_cast<int>(i / 2));
  };
  // A few rows are written sooner than threads meet.
  constexpr int kFewRows = 4;
  if (batch.back().row + batch.back().count - batch[0].row <= kFewRows) {
    all(0, parts, 0);
  } else {
    pool_.run(parts, all);
  }
}

}  // namespace

Result<std::shared_ptr<Backend>> make_cpu_backend(const CpuOptions& options) {
  const char* name = std::getenv("KVFOLD_CPU");
  const CpuKernels* kernels = select_cpu_kernels(name);
  if (kernels == nullptr) {
    std::string known;
    for (const CpuKernels* table : cpu_kernel_tables())
      if (table->supported() && known.find(table->name) == std::string::npos)
        known += fmt::format(" {}", table->name);
    return Status::error(fmt::format("KVFOLD_CPU={}: expected one of:{}", name, known));
  }
  CpuOptions resolved = options;
  if (resolved.threads <= 0) resolved.threads = ThreadPool::available();
  return std::shared_ptr<Backend>(new CpuBackend(kernels, resolved));
}

}  // namespace kvfold
