// libFuzzer's entry points for one target, KVFOLD_FUZZ_RUN, with its mutator KVFOLD_FUZZ_MUTATE, if it has
// one.
#include <cstring>

#include "tests/fuzz/mutators.h"
#include "tests/fuzz/targets.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvfold::fuzz::KVFOLD_FUZZ_RUN(std::as_bytes(std::span(data, size)));
  return 0;
}

#ifdef KVFOLD_FUZZ_MUTATE
namespace {

std::string libfuzzer_scramble(std::string bytes, size_t most, kvfold::fuzz::Dice&) {
  const size_t size = bytes.size();
  bytes.resize(std::max(most, size) + 1);
  bytes.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(bytes.data()), size, std::max(most, size + 1)));
  return bytes;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  kvfold::fuzz::Dice dice(seed);
  std::string file(reinterpret_cast<const char*>(data), size);
  for (size_t n = 1 + dice.below(3); n > 0; --n)
    file = kvfold::fuzz::KVFOLD_FUZZ_MUTATE(file, most, dice, libfuzzer_scramble);
  file.resize(std::min(file.size(), most));
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
#endif
