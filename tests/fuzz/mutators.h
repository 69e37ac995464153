// Mutations that know the formats, so that most mutants are refused for one reason only, deep in a file, and
// not for a length that no longer fits or a checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace kvfold::fuzz {

// A generator for one mutation: libFuzzer gives the seed.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}
  uint64_t next();
  // In [0, below). REQUIRES: below > 0.
  size_t below(size_t below) { return static_cast<size_t>(next() % below); }
  bool one_in(size_t n) { return below(n) == 0; }
  // A number at which checks of sizes break: powers of two and their neighbours, small ones, `about` and its
  // neighbours.
  uint64_t edge(uint64_t about);

 private:
  uint64_t state_;
};

// Changes some bytes, adds or drops some: libFuzzer's own, or a plain one where there is no libFuzzer.
using Scramble = std::string (*)(std::string bytes, size_t most, Dice& dice);
std::string plain_scramble(std::string bytes, size_t most, Dice& dice);

// Counts, lengths, types, dimensions and offsets set to edges; entries doubled, dropped, exchanged; strings
// scrambled with their lengths kept true.
std::string mutate_gguf(const std::string& file, size_t most, Dice& dice, Scramble scramble);
// Numbers of the header set to edges; keys doubled; data cut or grown; the header's length kept true.
std::string mutate_safetensors(const std::string& file, size_t most, Dice& dice, Scramble scramble);
// Values of a cache file's metadata and its tensors changed, with all checksums made true again.
std::string mutate_cache(const std::string& file, size_t most, Dice& dice, Scramble scramble);

}  // namespace kvfold::fuzz
