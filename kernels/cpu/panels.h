// Walking over activations, group by group: what every kernel table does alike.
#pragma once

#include <algorithm>

#include "kernels/cpu/cpu.h"

namespace kvfold {

// Calls quantize_group(x, n, to) for each group of n columns of rows [rows][columns], in the order in which
// the panels lie in memory.
template <class QuantizeGroup>
void for_each_group(const float* x, int rows, int columns, ActivationGroup* panels,
                    QuantizeGroup quantize_group) {
  for (int first = 0; first < rows; first += kPanelRows)
    for (int column = 0; column < columns; column += kGroup, ++panels)
      for (int r = 0; r < std::min(kPanelRows, rows - first); ++r)
        quantize_group(x + static_cast<int64_t>(first + r) * columns + column,
                       std::min(kGroup, columns - column), panels->rows[r]);
}

}  // namespace kvfold
