// Which loader a path goes to, and fingerprints, which tell models apart whatever their files are.
#include "loaders/model_loader.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "loaders/fingerprint.h"
#include "tests/checkpoint_copy.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

TEST(ModelLoader, ACheckpointByItsFolderOrOneOfItsFiles) {
  const Copy copy("llama-32-4");
  const std::string expected = load_model_source(copy.path())->fingerprint;
  EXPECT_EQ(load_model_source(copy.file("config.json"))->fingerprint, expected);
  EXPECT_EQ(load_model_source(copy.file("model.safetensors"))->fingerprint, expected);
  EXPECT_EQ(load_model_source(kCheckpoints + "llama-9-3-tied/model.safetensors.index.json")->fingerprint,
            load_model_source(kCheckpoints + "llama-9-3-tied")->fingerprint);
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(copy.path());
  const Result<ModelSource> here = load_model_source("config.json");
  std::filesystem::current_path(before);
  ASSERT_TRUE(here.ok()) << here.status().message();
  EXPECT_EQ(here->fingerprint, expected);
}

TEST(ModelLoader, TheNameOfACheckpointIsItsFolders) {
  for (const char* end : {"", "/", "/.", "//", "/../llama-32-4"})
    EXPECT_EQ(load_model_source(kCheckpoints + "llama-32-4" + end)->config.name, "llama-32-4") << end;
}

TEST(ModelLoader, FilesOfNoKnownKind) {
  const TemporaryFolder folder;
  const auto refusal = [&](const std::string& bytes) {
    return load_model_source(folder.write("x", bytes)).status().message();
  };
  const std::string expected = ", expected \"GGUF\", or a folder with config.json";
  EXPECT_EQ(refusal("hello"), folder.file("x") + ": magic at offset 0: found bytes 68 65 6c 6c" + expected);
  EXPECT_EQ(refusal("GG"), folder.file("x") + ": magic at offset 0: found bytes 47 47" + expected);
  EXPECT_TRUE(refusal("").starts_with(folder.file("x") + ": "));
  EXPECT_TRUE(refusal("GGUF").starts_with(folder.file("x") + ": version"));
}

TEST(ModelLoader, TheVocabularyOfAModel) {
  const TemporaryFolder folder;
  const std::string path = folder.write("tiny.gguf", tiny_model().build());
  const Result<LoadedVocabulary> of_gguf = load_vocabulary(path);
  ASSERT_TRUE(of_gguf.ok()) << of_gguf.status().message();
  EXPECT_EQ(of_gguf->source.tokens, load_model_source(path)->vocabulary.tokens);
  const Result<LoadedVocabulary> of_folder = load_vocabulary(kCheckpoints + "llama-32-4");
  ASSERT_TRUE(of_folder.ok()) << of_folder.status().message();
  EXPECT_EQ(of_folder->source.tokens.size(), 32U);
  EXPECT_FALSE(load_vocabulary(folder.write("x.txt", "text")).ok());
  EXPECT_FALSE(load_vocabulary(folder.write("x.json", "{}")).ok());
}

// Of a tensor the first and last 4096 bytes count, and pieces of what lies between.
TEST(Fingerprint, ComesOfShapesTypesAndBytes) {
  std::vector<std::byte> data(40'000);
  ModelSource source;
  const auto print = [&](int64_t bytes) {
    source.output_norm = {WeightType::kF32, 1, bytes / 4, data.data()};
    return fingerprint(source);
  };
  for (const int64_t size : {4, 4096, 8192, 8192 + 256, 8192 + 256 + 4, 40'000}) {
    const std::string before = print(size);
    EXPECT_EQ(print(size), before);
    EXPECT_NE(print(size == 4 ? 8 : size - 4), before) << size;
    for (const int64_t at : {int64_t{0}, size - 1}) {
      data[at] = std::byte{1};
      EXPECT_NE(print(size), before) << size << " " << at;
      data[at] = std::byte{0};
    }
  }
  int noticed = 0;  // of the bytes between the ends: 16 pieces of 256
  const std::string before = print(40'000);
  for (int64_t at = 4096; at < 40'000 - 4096; at += 16) {
    data[at] = std::byte{1};
    noticed += print(40'000) != before;
    data[at] = std::byte{0};
  }
  EXPECT_EQ(noticed, 16 * 256 / 16);
  source.output_norm.type = WeightType::kF16;
  source.output_norm.columns = 20'000;
  EXPECT_NE(fingerprint(source), before);
}

TEST(Fingerprint, ComesOfConfigurationAndAllTensors) {
  const Result<ModelSource> loaded = load_model_source(kCheckpoints + "llama-bias");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  std::set<std::string> prints = {loaded->fingerprint};
  const auto changed = [&](const std::function<void(ModelSource&)>& change) {
    ModelSource source = *loaded;
    change(source);
    EXPECT_TRUE(prints.insert(fingerprint(source)).second);
  };
  changed([](ModelSource& s) { s.config.norm_epsilon *= 2; });
  changed([](ModelSource& s) { s.config.rope_base += 1; });
  changed([](ModelSource& s) { s.config.rope_pairing = RopePairing::kInterleaved; });
  changed([](ModelSource& s) { s.config.rope_factors = {1, 2}; });
  changed([](ModelSource& s) { s.tied_output = !s.tied_output; });
  changed([](ModelSource& s) { s.layers.pop_back(); });
  changed([](ModelSource& s) { s.layers[0].bo = {}; });
  changed([](ModelSource& s) { std::swap(s.layers[0].wk, s.layers[0].wv); });
  changed([](ModelSource& s) { s.layers[1].bq = {}; });
}

}  // namespace
}  // namespace kvfold::testing
