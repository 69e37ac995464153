#include "engine/read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>

#include "engine/thread_pool.h"
#include "engine/weight_memory.h"
#include "kernels/cpu/cpu.h"

namespace kvfold {

Result<double> read_bandwidth(int threads) {
  constexpr size_t kPiece = size_t{1} << 20;
  constexpr int64_t kPieces = 400;
  constexpr int kTurns = 8;
  const CpuKernels* kernels = select_cpu_kernels(std::getenv("KVFOLD_CPU"));
  if (kernels == nullptr) return Status::error("KVFOLD_CPU names no kernels that this machine supports");
  const std::shared_ptr<std::byte> memory = WeightMemory().allocate(kPieces * kPiece);
  if (!memory) return Status::error("no memory for 400 MB to read");
  std::fill_n(memory.get(), kPieces * kPiece, std::byte{1});
  ThreadPool pool(threads);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int turn = 0; turn < kTurns; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(kPieces, [&](int64_t begin, int64_t end, int) {
      sink ^= kernels->read(memory.get() + begin * kPiece, static_cast<size_t>(end - begin) * kPiece);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, kPieces * kPiece / took.count());
  }
  return best;
}

}  // namespace kvfold
