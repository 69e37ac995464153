// The operations that a forward pass is made of, on whatever device does them. The forward pass (model.cpp)
// is written once, over this interface.
//
// Activations are f32 matrices, row after row, in the backend's own memory; rows are the tokens of a batch.
#pragma once

#include <limits>
#include <memory>
#include <span>

#include "engine/kv/cache.h"
#include "engine/likeliest.h"
#include "engine/rope.h"
#include "engine/status.h"
#include "kernels/views.h"

namespace kvfold {

struct ModelSource;

// How activations enter a matrix product.
enum class Precision {
  kInt8,   // quantised in groups of 32, multiplied with the weight's own integers; unquantised weights stay
           // f32
  kExact,  // f32
};

// A weight matrix that a backend has taken in: [rows outputs, columns inputs].
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  // The backend has a copy of its own, and reads the view seldom or never.
  virtual bool copied() const { return false; }

 protected:
  Weight(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {}

 private:
  int64_t rows_, columns_;
};

// What matrix products take in: x [rows][columns], each row first through RMS norm where `norm` is given.
struct LinearInput {
  const float* x;
  int rows;
  const float* norm = nullptr;  // [columns], backend memory, or null
  float epsilon = 0;            // of the norm
};

// One product of `linear`: out[rows][weight.rows()] = x weight^T + bias.
struct Linear {
  const Weight* weight;
  const float* bias;  // [weight.rows()], backend memory, or null
  float* out;
  bool accumulate = false;  // out += x weight^T + bias
};

// Consecutive tokens of one cache in a batch. Their rows stand at slots slot .. slot + count - 1 of the
// cache, which may already hold later ones: those are not looked at.
struct BatchSequence {
  const KvCache* cache;
  int slot;
  int count;
  int row;  // of the first token in the batch's matrices
};

// A forward pass, said to the backend before the first of its operations, so that a device can have what all
// layers need sent over at once, and run the operations as one piece.
struct Pass {
  std::span<const TokenId> tokens;
  std::span<const BatchSequence> batch;
  RopeView rope;
  int heads;          // query heads
  const void* model;  // equal `model` and `activations`: equal operations on equal pointers
  const void* activations;
  bool watched;  // somebody looks at activations between the operations
};

// Sizes that attention needs.
struct AttentionShape {
  int heads;
  int kv_heads;
  int head_dim;
};

// What a session is going to keep in a backend's memory beside the weights.
struct MemoryWanted {
  CacheType type;
  size_t cache_bytes;
  int rows;  // most tokens computed at once
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;

  // Before anything is taken in: what it will take, as a line for the user; "" where memory is not short. A
  // device's memory may be taken now, for what is taken in next. Errors: it would not fit; the model has
  // dimensions that the device cannot do.
  virtual Result<std::string> plan(const ModelSource& /*source*/, const MemoryWanted& /*wanted*/) {
    return std::string();
  }

  // Takes in a weight; `view` must stay valid while the weight is used. Errors: no memory.
  virtual Result<std::unique_ptr<Weight>> prepare(const MatrixView& view) = 0;
  // Takes in a table of which `embed` looks up rows and that enters no product. Likewise.
  virtual Result<std::unique_ptr<Weight>> prepare_table(const MatrixView& view) = 0;
  // Uninitialised memory for `count` floats. Errors: no memory.
  virtual Result<std::shared_ptr<float>> allocate(size_t count) = 0;
  virtual void upload(std::span<const float> from, float* to) = 0;
  virtual void download(const float* from, std::span<float> to) = 0;

  // The k likeliest of each of `rows` rows of logits [rows][columns], likeliest first: out [rows][k]. A
  // device finds them itself where k is small, so that they alone are sent. REQUIRES: 1 <= k <= columns.
  virtual void likeliest(const float* logits, int rows, int columns, int k, std::span<TokenLogit> out) = 0;

  // Memory for the caches of a session, `budget_bytes` of it at most. Errors: as PagePool::create.
  virtual Result<std::shared_ptr<PagePool>> make_pool(CacheType type, int head_dim, size_t budget_bytes) {
    return PagePool::create(type, head_dim, budget_bytes);
  }
  // What went wrong on a device since it was made; the caches' newest rows are then void.
  virtual Status status() const { return {}; }

  // embed, linear, gated_linear, rms_norm, store_kv and attention of a pass stand between these.
  virtual void begin_pass(const Pass& /*pass*/) {}
  virtual void begin_layer(int /*layer*/) {}  // whose operations follow
  virtual void end_pass() {}

  // out[i] = row ids[i] of the table, as f32.
  virtual void embed(const Weight& table, std::span<const TokenId> ids, float* out) = 0;
  // Each of `rows` rows of `columns` values by itself; weight [columns].
  virtual void rms_norm(const float* x, int rows, int columns, const float* weight, float epsilon,
                        float* out) = 0;
  // Several products of one input.
  virtual void linear(std::span<const Linear> products, const LinearInput& x) = 0;
  // out[rows][gate.rows()] = silu(x gate^T) * (x up^T), the first half of a gated feed-forward network
  // (SwiGLU, Shazeer 2020).
  virtual void gated_linear(const Weight& gate, const Weight& up, const LinearInput& x, float* out) = 0;
  // Rows that had better pass both halves of such a network before others do, so that what is between the
  // halves stays in a near cache.
  virtual int ffn_rows() const { return std::numeric_limits<int>::max(); }
  // Writes k and v [rows][kv_heads * head_dim] of a layer to the rows of the batch's caches.
  virtual void store_kv(std::span<const BatchSequence> batch, int layer, const float* k, const float* v) = 0;
  // q, out [rows][heads * head_dim]. Each token sees the rows of its lane up to and with its own slot.
  virtual void attention(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape,
                         const RopeView& rope, const float* q, float* out) = 0;
};

struct CpuOptions {
  int threads = 0;  // 0: one for every CPU that the process may use
  Precision precision = Precision::kInt8;
};

// Errors: KVFOLD_CPU names a kernel table that is unknown or that this machine does not support.
Result<std::shared_ptr<Backend>> make_cpu_backend(const CpuOptions& options);

}  // namespace kvfold
