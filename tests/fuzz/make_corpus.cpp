// fuzz_make_corpus FOLDER: writes the seeds of fuzzing, FOLDER/<target>/<name>. What fuzzing has found since
// lies beside them and stays.
#include <filesystem>
#include <fstream>

#include "tests/fuzz/small_files.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  for (const kvfold::fuzz::Seed& seed : kvfold::fuzz::seeds()) {
    const std::filesystem::path folder = std::filesystem::path(argv[1]) / seed.target;
    std::filesystem::create_directories(folder);
    std::ofstream(folder / seed.name, std::ios::binary) << seed.bytes;
  }
}
