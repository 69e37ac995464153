// The CPU backend: cuts each operation over the threads. How it is cut never shows in a result, since every
// output element is summed whole by one thread, and attention is cut at fixed blocks of rows.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
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

// Tokens whose attention is worked on together: bounds the memory for partial results.
constexpr int kAttentionTokens = 32;

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuKernels* kernels, const CpuOptions& options)
      : kernels_(kernels), precision_(options.precision), pool_(options.threads) {}

  std::string name() const override {
    return fmt::format("cpu ({}, {} threads)", kernels_->name, pool_.threads());
  }

  Result<std::unique_ptr<Weight>> prepare(const MatrixView& view) override;
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

  void linear(std::span<const Linear> products, const float* x, int rows) override;

  void add(const float* x, int64_t count, float* to) override {
    for (int64_t i = 0; i < count; ++i) to[i] += x[i];
  }
  void swiglu(const float* gate, const float* up, int64_t count, float* out) override {
    pool_.run(count / kSwigluPiece + 1, [&](int64_t begin, int64_t end, int) {
      const int64_t first = begin * kSwigluPiece;
      const int64_t last = std::min(end * kSwigluPiece, count);
      if (first < last)
        kernels_->swiglu(gate + first, up + first, static_cast<int>(last - first), out + first);
    });
  }

  void store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) override;
  void attention(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                 const RopeView& rope, const float* q, float* out) override;

 private:
  static constexpr int64_t kSwigluPiece = 1024;
  struct Token {
    const BatchSequence* sequence;
    int index;  // in the sequence
  };

  bool in_integers(const MatrixView& view) const {
    return precision_ == Precision::kInt8 && format_info(view.type).group != nullptr;
  }
  QuantizedView quantize(const float* x, int rows, int columns);
  void product(const Linear& linear, const QuantizedView* quantized, const float* x, int rows);
  void attend(std::span<const Token> tokens, int layer, const AttentionShape& shape, const RopeView& rope,
              const float* q, float* out);

  const CpuKernels* kernels_;
  Precision precision_;
  ThreadPool pool_;
  // Scratch, kept between calls.
  std::vector<int8_t> q_;
  std::vector<float> scales_;
  std::vector<int32_t> half_sums_;
  std::vector<std::vector<float>> decoded_;  // one a thread
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

QuantizedView CpuBackend::quantize(const float* x, int rows, int columns) {
  const int groups = (columns + kGroup - 1) / kGroup;
  const size_t all = static_cast<size_t>(rows) * groups;
  if (q_.size() < all * kGroup) {
    q_.resize(all * kGroup);
    scales_.resize(all);
    half_sums_.resize(2 * all);
  }
  pool_.run(rows, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      kernels_->quantize_row(x + r * columns, columns, &q_[r * groups * kGroup], &scales_[r * groups],
                             &half_sums_[2 * r * groups]);
  });
  return {q_.data(), scales_.data(), half_sums_.data(), groups};
}

void CpuBackend::product(const Linear& linear, const QuantizedView* quantized, const float* x, int rows) {
  const CpuWeight& weight = cpu_weight(*linear.weight);
  const int64_t outputs = weight.rows();
  const int64_t unit = quantized != nullptr ? kernels_->row_unit : 1;
  decoded_.resize(pool_.threads());
  pool_.run((outputs + unit - 1) / unit, [&](int64_t begin, int64_t end, int thread) {
    if (quantized != nullptr) {
      kernels_->matmul_q8(weight.packed(), begin, end, *quantized, rows, linear.out, outputs);
    } else {
      decoded_[thread].resize(weight.columns());
      kernels_->matmul_f32(weight.view(), begin, end, x, rows, linear.out, outputs, decoded_[thread].data());
    }
    if (linear.bias == nullptr) return;
    for (int t = 0; t < rows; ++t)
      for (int64_t r = begin * unit; r < std::min(end * unit, outputs); ++r)
        linear.out[t * outputs + r] += linear.bias[r];
  });
}

void CpuBackend::linear(std::span<const Linear> products, const float* x, int rows) {
  QuantizedView quantized{};
  bool have_quantized = false;
  for (const Linear& linear : products) {
    const bool integers = in_integers(view_of(*linear.weight));
    if (integers && !have_quantized) {
      quantized = quantize(x, rows, static_cast<int>(linear.weight->columns()));
      have_quantized = true;
    }
    product(linear, integers ? &quantized : nullptr, x, rows);
  }
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
