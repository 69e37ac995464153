// The CPU backend: cuts each operation over the threads. How it is cut never shows in a result, since every
// output element is summed whole by one thread, and attention is cut at fixed blocks of rows.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "engine/backend.h"
#include "engine/thread_pool.h"
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

// Activation rows that pass by a strip of weights together and so stay in the nearer caches.
constexpr int kRowsAtOnce = 64;
// Tokens whose attention is worked on together: bounds the memory for partial results.
constexpr int kAttentionTokens = 32;

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuKernels* kernels, const CpuOptions& options)
      : kernels_(kernels), precision_(options.precision), pool_(options.threads), scratch_(pool_.threads()) {}

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

  void store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) override;
  void attention(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                 const RopeView& rope, const float* q, float* out) override;

 private:
  struct Token {
    const BatchSequence* sequence;
    int index;  // in the sequence
  };

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
  void attend(std::span<const Token> tokens, int layer, const AttentionShape& shape, const RopeView& rope,
              const float* q, float* out);

  const CpuKernels* kernels_;
  Precision precision_;
  ThreadPool pool_;
  // Scratch, kept between calls.
  std::vector<int8_t> q_;
  std::vector<float> scales_;
  std::vector<int32_t> half_sums_;
  std::vector<float> normed_;
  struct ThreadScratch {
    std::vector<float> decoded;      // a row of a weight
    std::vector<float> products[2];  // [rows][outputs of a strip]
  };
  std::vector<ThreadScratch> scratch_;
  std::vector<float> partials_;
};

Result<std::unique_ptr<Weight>> CpuBackend::prepare(const MatrixView& view) {
  if (kernels_->pack == nullptr || !in_integers(view)) return std::unique_ptr<Weight>(new CpuWeight(view));
  const size_t bytes = kernels_->packed_bytes(view);
  std::shared_ptr<std::byte> packed = allocate_bytes(bytes);
  if (!packed) return Status::error(fmt::format("no memory for {} bytes of packed weights", bytes));
  pool_.run((view.rows + kernels_->row_unit - 1) / kernels_->row_unit,
            [&](int64_t begin, int64_t end, int) { kernels_->pack(view, begin, end, packed.get()); });
  return std::unique_ptr<Weight>(new CpuWeight(view, std::move(packed)));
}

CpuBackend::Input CpuBackend::take_input(const LinearInput& x, int columns, bool quantize) {
  const int groups = (columns + kGroup - 1) / kGroup;
  const size_t all = static_cast<size_t>(x.rows) * groups;
  if (quantize && q_.size() < all * kGroup) {
    q_.resize(all * kGroup);
    scales_.resize(all);
    half_sums_.resize(2 * all);
  }
  if (x.norm != nullptr) normed_.resize(std::max(normed_.size(), static_cast<size_t>(x.rows) * columns));
  pool_.run(x.rows, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x.x + r * columns;
      if (x.norm != nullptr) {
        kernels_->rms_norm(row, x.norm, columns, x.epsilon, &normed_[r * columns]);
        row = &normed_[r * columns];
      }
      if (quantize)
        kernels_->quantize_row(row, columns, &q_[r * groups * kGroup], &scales_[r * groups],
                               &half_sums_[2 * r * groups]);
    }
  });
  return {{q_.data(), scales_.data(), half_sums_.data(), groups},
          x.norm != nullptr ? normed_.data() : x.x,
          columns};
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
    QuantizedView part = x.quantized;
    part.q += static_cast<int64_t>(row) * part.groups * kGroup;
    part.scales += static_cast<int64_t>(row) * part.groups;
    part.half_sums += static_cast<int64_t>(row) * part.groups * 2;
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
      const Strip g = part(gate, begin, end, row, rows, thread, 0);
      const Strip u = part(up, begin, end, row, rows, thread, 1);
      for (int t = 0; t < rows; ++t)
        kernels_->swiglu(g.values + t * g.count, u.values + t * g.count, static_cast<int>(g.count),
                         out + (row + t) * outputs + g.first);
    }
  });
}

void CpuBackend::store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) {
  for (const BatchSequence& sequence : batch) {
    const KvCache& cache = *sequence.cache;
    const CacheShape& shape = cache.shape();
    for (int i = 0; i < sequence.count; ++i)
      for (int head = 0; head < shape.kv_heads; ++head) {
        const int64_t at = (static_cast<int64_t>(sequence.row + i) * shape.kv_heads + head) * shape.head_dim;
        const int lane = shape.lane(layer, head);
        const auto key = cache.row_place(Part::kKey, lane, sequence.slot + i);
        kv_store_row(cache.type(), Part::kKey, shape.head_dim, cache.pool()->write(key.page), key.row,
                     k + at);
        const auto value = cache.row_place(Part::kValue, lane, sequence.slot + i);
        kv_store_row(cache.type(), Part::kValue, shape.head_dim, cache.pool()->write(value.page), value.row,
                     v + at);
      }
  }
}

void CpuBackend::attention(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                           const RopeView& rope, const float* q, float* out) {
  std::vector<Token> tokens;
  for (const BatchSequence& sequence : batch)
    for (int i = 0; i < sequence.count; ++i) tokens.push_back({&sequence, i});
  for (size_t first = 0; first < tokens.size(); first += kAttentionTokens) {
    const size_t n = std::min<size_t>(kAttentionTokens, tokens.size() - first);
    attend(std::span(tokens).subspan(first, n), layer, shape, rope, q, out);
  }
}

void CpuBackend::attend(std::span<const Token> tokens, int layer, const AttentionShape& shape,
                        const RopeView& rope, const float* q, float* out) {
  struct Item {
    AttentionBlock block;
    AttentionPartial partial;
  };
  struct Join {
    AttentionPartial first;
    int blocks;
    float* out;
  };
  const int group = shape.heads / shape.kv_heads;
  // Rows of its lane that a token sees: all but those behind its own.
  const auto visible = [&](const Token& token, int lane) {
    const KvCache& cache = *token.sequence->cache;
    return cache.lanes().table(Part::kKey, lane).rows_before(token.sequence->slot + token.index + 1);
  };
  const auto for_each = [&](auto visit) {
    for (const Token& token : tokens)
      for (int head = 0; head < shape.kv_heads; ++head) {
        const int lane = layer * shape.kv_heads + head;
        const int rows = visible(token, lane);
        visit(token, head, lane, rows, (rows + kAttentionBlock - 1) / kAttentionBlock);
      }
  };
  int64_t blocks = 0;
  for_each([&](const Token&, int, int, int, int n) { blocks += n; });
  partials_.resize(static_cast<size_t>(blocks) * group * (shape.head_dim + 2));
  float* largest = partials_.data();
  float* sums = largest + blocks * group;
  float* values = sums + blocks * group;

  std::vector<Item> items;
  std::vector<Join> joins;
  for_each([&](const Token& token, int head, int lane, int rows, int n) {
    const KvCache& cache = *token.sequence->cache;
    const int64_t at =
        (static_cast<int64_t>(token.sequence->row + token.index) * shape.heads + head * group) *
        shape.head_dim;
    const int32_t* positions = cache.rows().positions.data();
    const auto index = static_cast<int64_t>(items.size()) * group;
    joins.push_back({{largest + index, sums + index, values + index * shape.head_dim}, n, out + at});
    for (int b = 0; b < n; ++b) {
      const int64_t i = index + static_cast<int64_t>(b) * group;
      items.push_back({{cache.pool()->view(), cache.lanes().lane_view(lane), positions, rope, q + at, group,
                        positions[token.sequence->slot + token.index],
                        1.0F / std::sqrt(static_cast<float>(shape.head_dim)), b * kAttentionBlock,
                        std::min((b + 1) * kAttentionBlock, rows)},
                       {largest + i, sums + i, values + i * shape.head_dim}});
    }
  });
  pool_.run(static_cast<int64_t>(items.size()), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) kernels_->attention_block(items[i].block, items[i].partial);
  });
  pool_.run(static_cast<int64_t>(joins.size()), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      kernels_->attention_combine(joins[i].first, joins[i].blocks, group, shape.head_dim, joins[i].out);
  });
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
