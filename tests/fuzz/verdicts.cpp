// fuzz_verdicts gguf|safetensors COUNT SEED: mutants of the corpus with this project's verdict on each, for
// tests/oracle/differential.py. To stdout, for each mutant: its size (u64), its bytes, the size of the
// message that it is refused with (u64, 0: taken), the message.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "loaders/gguf.h"
#include "tests/fuzz/mutators.h"
#include "tests/fuzz/small_files.h"

namespace kvfold::fuzz {
namespace {

Status verdict(const std::string& target, const std::string& file) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(file));
  if (target == "safetensors") return parse_safetensors(bytes, "file").status();
  return GgufFile::parse(MappedFile::of_bytes("file", {bytes.begin(), bytes.end()})).status();
}

void put(const std::string& text) {
  const uint64_t size = text.size();
  std::fwrite(&size, sizeof size, 1, stdout);
  std::fwrite(text.data(), 1, text.size(), stdout);
}

int run(const std::string& target, int count, uint64_t seed) {
  std::vector<std::string> files;
  for (const Seed& s : seeds())
    if (s.target == target || (target == "safetensors" && s.target == "cache")) files.push_back(s.bytes);
  if (files.empty()) return 2;
  Dice dice(seed);
  const auto mutate = target == "gguf" ? mutate_gguf : mutate_safetensors;
  for (int i = 0; i < count; ++i) {
    std::string mutant = files[dice.below(files.size())];
    for (size_t n = 1 + dice.below(2); n > 0; --n) mutant = mutate(mutant, 1 << 16, dice, plain_scramble);
    if (mutant.empty()) mutant.push_back('x');
    put(mutant);
    put(verdict(target, mutant).message());
  }
  return std::fflush(stdout) == 0 ? 0 : 2;
}

}  // namespace
}  // namespace kvfold::fuzz

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  return kvfold::fuzz::run(argv[1], std::atoi(argv[2]), std::strtoull(argv[3], nullptr, 10));
}
