// Small random models in GGUF, for tests that need a whole model and no particular one.
#pragma once

#include <memory>
#include <string>

#include "loaders/open.h"
#include "tests/gguf_writer.h"
#include "tests/temporary.h"

namespace kvfold::testing {

struct TinyModelOptions {
  std::string architecture = "llama";
  int layers = 2;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 16;
  int ffn_dim = 96;
  int context_length = 4096;
  float rope_base = 10000;
  WeightType type = WeightType::kQ4_0;  // of the matrices; K-quants need dimensions that 256 divides
  bool tied = true;
  uint64_t seed = 1;
  int model_dim() const { return heads * head_dim; }
};

// The file's parts, to be built as they are or broken first. The vocabulary is the 256 bytes, a few merges
// and the control tokens <|endoftext|>, <|im_start|>, <|im_end|>; the chat template is ChatML.
GgufWriter tiny_model(const TinyModelOptions& options = {});

// A session on a tiny model of its own.
std::unique_ptr<Session> tiny_session(const TemporaryFolder& folder, const TinyModelOptions& model = {},
                                      const OpenOptions& options = {});

}  // namespace kvfold::testing
