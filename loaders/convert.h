// A model of any kind to a GGUF file.
#pragma once

#include <string>
#include <vector>

#include "engine/model_source.h"
#include "engine/status.h"
#include "engine/thread_pool.h"
#include "loaders/quantize.h"

namespace kvfold {

// Writes `source` to `path` with its matrices so quantised and its vectors in f32, one tensor in memory at a
// time. Rows of q and k are permuted where the architecture's GGUF files pair RoPE otherwise than `source`.
// Errors: the file cannot be written; where it quantises, infinity or NaN among the weights, or weights
// beyond what the type can hold.
Status convert_to_gguf(const ModelSource& source, const Quantization& quantization, ThreadPool& pool,
                       const std::string& path);

// What a GGUF file of `source` does not say as `source` does, and why llama.cpp does not read it, a line
// each.
std::vector<std::string> gguf_remarks(const ModelSource& source);

}  // namespace kvfold
