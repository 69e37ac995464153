// Every weight format as a type, for code that is compiled once a format.
#pragma once

#include <cstdlib>

#include "kernels/formats/floats.h"
#include "kernels/formats/q4_0.h"
#include "kernels/formats/q4_1.h"
#include "kernels/formats/q4_k.h"
#include "kernels/formats/q5_0.h"
#include "kernels/formats/q5_1.h"
#include "kernels/formats/q5_k.h"
#include "kernels/formats/q6_k.h"
#include "kernels/formats/q8_0.h"

namespace kvfold {

// Calls visit(Format{}) for the format of a quantised type. REQUIRES: `type` is one.
template <class Visit>
void visit_quantized_format(WeightType type, Visit visit) {
  switch (type) {
    case WeightType::kQ4_0:
      return visit(Q4_0{});
    case WeightType::kQ4_1:
      return visit(Q4_1{});
    case WeightType::kQ5_0:
      return visit(Q5_0{});
    case WeightType::kQ5_1:
      return visit(Q5_1{});
    case WeightType::kQ8_0:
      return visit(Q8_0{});
    case WeightType::kQ4_K:
      return visit(Q4_K{});
    case WeightType::kQ5_K:
      return visit(Q5_K{});
    case WeightType::kQ6_K:
      return visit(Q6_K{});
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  std::abort();
}

}  // namespace kvfold
