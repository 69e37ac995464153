// Weights brought to another format, tensor by tensor.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/model_source.h"
#include "engine/status.h"
#include "engine/thread_pool.h"

namespace kvfold {

// What --quantize takes: q4_0, q4_1, q8_0, q4_k, or none.
struct Quantization {
  bool none = true;
  WeightType type = WeightType::kF32;

  // Errors: another word.
  static Result<Quantization> parse(const std::string& text);
  // llama.cpp's general.file_type for a file whose matrices have this type, or of type `stored` where none.
  uint32_t file_type(WeightType stored) const;
  // The type that a matrix is brought to. The one that makes the logits (the output, or a tied embedding)
  // keeps more than four bits: Q6_K, or Q8_0 where rows are no multiple of 256. Other rows that are no
  // multiple of 256 take Q5_0 in place of Q4_K; rows that are no multiple of 32 take F16.
  WeightType type_of(const MatrixView& matrix, bool makes_logits) const;
};

// `view` in another type, its rows in the order that `row_at` gives: row r of the result is row
// row_at(r). The bytes do not depend on the number of threads. Errors: weights beyond what the type's scales,
// which are f16, can hold.
Result<std::vector<std::byte>> requantize(const MatrixView& view, WeightType type,
                                          const std::function<int64_t(int64_t)>& row_at, ThreadPool& pool);

// The model with its matrices so quantised, held in memory until they are discarded; vectors stay where they
// are. While it runs, it needs the quantised tensors and the file's pages of one more. Errors: as above.
Result<ModelSource> quantize_model(ModelSource source, const Quantization& quantization, ThreadPool& pool);

}  // namespace kvfold
