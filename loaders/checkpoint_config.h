// config.json and generation_config.json of a Hugging Face checkpoint.
//
// Source: the configuration classes of transformers (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config),
// as releases 4 and 5 write them: RoPE by rope_theta and rope_scaling, or by rope_parameters.
#pragma once

#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/status.h"
#include "engine/tokenizer/vocabulary.h"
#include "loaders/architectures.h"

namespace kvfold {

struct CheckpointConfig {
  ModelConfig model;  // rope_pairing: half-split, as all of these checkpoints store q and k
  const Architecture* architecture = nullptr;
  bool qkv_bias = false;
  bool output_bias = false;         // of the attention's output projection
  bool tied_output = false;         // lm_head is the embedding, unless the files hold another
  bool says_whether_tied = false;   // otherwise the files decide: no lm_head.weight, tied
  TokenId bos = -1;                 // -1: none
  std::vector<TokenId> end_tokens;  // generation_config.json's, else config.json's
};

// Reads both files of `folder`; the second may be missing.
// Errors: a key that is missing, of a wrong type or out of range, with the file and the key; a model_type,
// activation, RoPE scaling or quantisation that is not supported.
Result<CheckpointConfig> read_checkpoint_config(const std::string& folder);

}  // namespace kvfold
