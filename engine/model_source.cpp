#include "engine/model_source.h"

#include <fmt/core.h>

#include <algorithm>
#include <vector>

#include "engine/printable.h"
#include "kernels/formats/finite.h"
#include "kernels/formats/formats.h"

namespace kvfold {

Status check_finite(const ModelSource& source, const MatrixView& view) {
  if (view.data == nullptr) return {};
  const FormatInfo& format = format_info(view.type);
  const int64_t row_bytes = view.columns / format.block_elements * format.block_bytes;
  const auto rows_are_finite = [&](int64_t first, int64_t rows) {
    return is_finite(view.type, view.data + first * row_bytes, static_cast<size_t>(rows * view.columns));
  };
  if (rows_are_finite(0, view.rows)) return {};
  int64_t row = 0;
  while (rows_are_finite(row, 1)) ++row;
  const std::string name = source.name_of ? source.name_of(view) : "";
  return Status::error(
      fmt::format("{}: tensor '{}': found infinity or NaN in row {}, expected finite weights", source.path,
                  printable(name), row));
}

Status check_finite(const ModelSource& source) {
  std::vector<const MatrixView*> views = {&source.embedding, &source.output_norm, &source.output};
  for (const LayerTensors& l : source.layers)
    views.insert(views.end(), {&l.attention_norm, &l.wq, &l.wk, &l.wv, &l.wo, &l.bq, &l.bk, &l.bv, &l.bo,
                               &l.q_norm, &l.k_norm, &l.ffn_norm, &l.gate, &l.up, &l.down});
  for (const MatrixView* view : views) {
    KVFOLD_RETURN_IF_ERROR(check_finite(source, *view));
    if (view->data != nullptr && source.release) source.release(*view);
  }
  return {};
}

}  // namespace kvfold
