#include "loaders/fingerprint.h"

#include <fmt/core.h>
#define XXH_STATIC_LINKING_ONLY  // the state as a value
#include <xxhash.h>

#include "kernels/formats/formats.h"

namespace kvfold {
namespace {

constexpr int64_t kEnds = 4096;
constexpr int64_t kPiece = 256;
constexpr int64_t kPieces = 16;

class Hasher {
 public:
  Hasher() { XXH3_64bits_reset(&state_); }

  void add(const void* data, size_t size) { XXH3_64bits_update(&state_, data, size); }
  void add(const std::string& text) { add(text.data(), text.size()); }
  void add_tensor(const char* role, const MatrixView& view) {
    add(fmt::format("{} {} {} {};", role, static_cast<uint32_t>(view.type), view.rows, view.columns));
    if (view.data == nullptr) return;
    const FormatInfo& format = format_info(view.type);
    const int64_t size = view.rows * (view.columns / format.block_elements) * format.block_bytes;
    if (size <= 2 * kEnds) return add(view.data, static_cast<size_t>(size));
    add(view.data, kEnds);
    add(view.data + size - kEnds, kEnds);
    const int64_t middle = size - 2 * kEnds - kPiece;
    for (int64_t i = 0; i < kPieces && middle > 0; ++i) add(view.data + kEnds + middle / kPieces * i, kPiece);
  }
  uint64_t digest() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

}  // namespace

std::string fingerprint(const ModelSource& source) {
  Hasher hasher;
  const ModelConfig& c = source.config;
  hasher.add(fmt::format("{} {} {} {} {} {} {} {} {} {:a} {:a} {};", c.architecture, c.layers, c.model_dim,
                         c.heads, c.kv_heads, c.head_dim, c.rotary_dim, c.ffn_dim, c.vocab_size,
                         c.norm_epsilon, c.rope_base, static_cast<int>(c.rope_pairing)));
  for (const float factor : c.rope_factors) hasher.add(fmt::format("{:a} ", factor));
  hasher.add_tensor("embedding", source.embedding);
  hasher.add_tensor("output_norm", source.output_norm);
  if (!source.tied_output) hasher.add_tensor("output", source.output);
  for (const LayerTensors& l : source.layers) {
    for (const MatrixView* view : {&l.attention_norm, &l.wq, &l.wk, &l.wv, &l.wo, &l.bq, &l.bk, &l.bv,
                                   &l.q_norm, &l.k_norm, &l.ffn_norm, &l.gate, &l.up, &l.down})
      hasher.add_tensor("layer", *view);
    if (l.bo.data != nullptr) hasher.add_tensor("bo", l.bo);
  }
  return fmt::format("{:016x}", hasher.digest());
}

}  // namespace kvfold
