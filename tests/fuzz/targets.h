// What is fuzzed: each target takes any bytes as if they had been read from a file, and comes back. Errors
// are held to what the project promises of them: one line that begins with the file's path, of printable
// ASCII, and not long. A broken promise stops the program.
//
// The same functions run under libFuzzer (fuzzer.cpp) and, over the committed corpus, among the tests
// (tests/fuzz_corpus_test.cpp).
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace kvfold::fuzz {

// A GGUF file, all the way to a tokenizer that encodes text.
void run_gguf(std::span<const std::byte> bytes);
// The safetensors format.
void run_safetensors(std::span<const std::byte> bytes);
// A cache file: its header, the cache in a pool of 1 MB, an operation on it; what another tool exported, or a
// projector.
void run_cache(std::span<const std::byte> bytes);
// The first byte chooses: text over a byte-level or an SPM vocabulary, or a tokenizer.model.
void run_tokenizer(std::span<const std::byte> bytes);
// A prompt set.
void run_prompts(std::span<const std::byte> bytes);
// The first byte chooses: config.json or tokenizer.json of a checkpoint, or any JSON file.
void run_json(std::span<const std::byte> bytes);

// JSON Lines: the first byte chooses the corpus or the facts of phase 2e, or the records of a run.
void run_lines(std::span<const std::byte> bytes);

struct Target {
  std::string_view name;  // of the corpus' folder too
  void (*run)(std::span<const std::byte> bytes);
};
inline constexpr Target kTargets[] = {{"gguf", run_gguf},       {"safetensors", run_safetensors},
                                      {"cache", run_cache},     {"tokenizer", run_tokenizer},
                                      {"prompts", run_prompts}, {"json", run_json},
                                      {"lines", run_lines}};

}  // namespace kvfold::fuzz
