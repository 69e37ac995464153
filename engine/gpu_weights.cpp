#include "engine/gpu_weights.h"

#include "kernels/cuda/packed.h"

namespace kvfold {

int64_t gpu_weight_bytes(const ModelSource& source) {
  int64_t bytes = 0;
  const auto matrix = [&](const MatrixView& view) {
    bytes += static_cast<int64_t>(cuda::packed_layout(view.type, view.rows, view.columns).bytes);
  };
  const auto vector = [&](const MatrixView& view) {
    if (view.data != nullptr) bytes += view.rows * view.columns * static_cast<int64_t>(sizeof(float));
  };
  matrix(source.embedding);
  vector(source.output_norm);
  if (!source.tied_output) matrix(source.output);
  for (const LayerTensors& t : source.layers) {
    for (const MatrixView* view : {&t.wq, &t.wk, &t.wv, &t.wo, &t.gate, &t.up, &t.down}) matrix(*view);
    for (const MatrixView* view :
         {&t.attention_norm, &t.bq, &t.bk, &t.bv, &t.bo, &t.q_norm, &t.k_norm, &t.ffn_norm})
      vector(*view);
  }
  return bytes;
}

}  // namespace kvfold
