// Attention of a batch on the CPU: cut into fixed blocks of rows for the threads, and blocks that several
// tokens see, of one sequence or of sequences that share pages, are read once for all of them.
#pragma once

#include <vector>

#include "engine/backend.h"
#include "engine/thread_pool.h"
#include "kernels/cpu/cpu.h"

namespace kvfold {

class CpuAttention {
 public:
  CpuAttention(const CpuKernels* kernels, ThreadPool* pool) : kernels_(kernels), pool_(pool) {}

  // As Backend::attention.
  void run(std::span<const BatchSequence> batch, int layer, const AttentionShape& shape, const RopeView& rope,
           const float* q, float* out);

 private:
  // One token's attention by one KV head: partial results of its blocks, in order, and where they go.
  struct Join {
    AttentionPartial parts;
    int blocks;
    float* out;
  };
  // A block as some tokens see it: queries [first, first + count).
  struct Item {
    AttentionBlock block;
    int index;      // of the block in its lane
    uint64_t hash;  // of the spans that hold its rows
    int first, count;
  };
  struct Call;

  void attend(std::span<const BatchSequence> batch, const Call& call);
  void add_sequence(const BatchSequence& sequence, int head, const Call& call);
  void share_blocks(size_t first);
  void work(const Item& item, int thread, const Call& call);

  const CpuKernels* kernels_;
  ThreadPool* pool_;
  // Scratch, kept between calls.
  std::vector<Item> items_;
  std::vector<AttentionQuery> queries_;
  std::vector<int> query_joins_;  // [queries]
  std::vector<Join> joins_;
  std::vector<int> unfinished_;  // [joins], blocks
  std::vector<float> partials_;
  std::vector<int> rows_;                    // that each token of a sequence sees
  std::vector<std::vector<float>> scratch_;  // one a thread
};

}  // namespace kvfold
