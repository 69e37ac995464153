// What a cache file says of itself and of its model, in its header alone.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "engine/kv/cache_file.h"
#include "tests/signed_file.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

constexpr CacheShape kShape = {2, 2, 48};

KvCache three_rows(CacheType type) {
  KvCache cache(PagePool::create(type, kShape.head_dim, size_t{1} << 20).value(), kShape);
  EXPECT_TRUE(cache.grow(std::vector<TokenId>{1, 2, 3}).ok());
  return cache;
}

// What a header says is enough to make a pool for the cache, and to know its model.
TEST(CacheInfo, IsWhatWasSaved) {
  const TemporaryFolder folder;
  const KvCache cache = three_rows(CacheType::kQ8);
  CacheModelInfo model = {"0123456789abcdef", "llama", "tiny", 500000.5F, RopePairing::kInterleaved, 48};
  for (int i = 0; i < 24; ++i) model.rope_factors.push_back(1 + 0.3F * static_cast<float>(i));
  const std::string path = folder.file("a");
  ASSERT_TRUE(save_cache(cache, model, path).ok());
  const Result<CacheFileInfo> read = read_cache_info(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  const CacheFileInfo& info = *read;
  EXPECT_EQ(info.model.fingerprint, model.fingerprint);
  EXPECT_EQ(info.model.architecture, "llama");
  EXPECT_EQ(info.model.name, "tiny");
  EXPECT_EQ(info.model.rope_base, model.rope_base);
  EXPECT_EQ(info.model.rope_pairing, model.rope_pairing);
  EXPECT_EQ(info.model.rotary_dim, 48);
  EXPECT_EQ(info.model.rope_factors, model.rope_factors);
  EXPECT_EQ(info.shape, kShape);
  EXPECT_EQ(info.type, CacheType::kQ8);
  EXPECT_EQ(info.rows, 3);
  EXPECT_EQ(info.next_position, 3);
  EXPECT_EQ(read_cache_info(folder.file("absent")).status().message(),
            folder.file("absent") + ": cannot open: No such file or directory");
}

TEST(CacheInfo, ThatContradictsIsRefused) {
  const TemporaryFolder folder;
  const CacheModelInfo model = {"0123456789abcdef", "llama", "tiny", 10000, RopePairing::kHalfSplit, 48};
  ASSERT_TRUE(save_cache(three_rows(CacheType::kF16), model, folder.file("good")).ok());
  const SignedFile good = SignedFile::parse(TemporaryFolder::read(folder.file("good")));
  const auto line = [&](const std::string& key, const std::string& value) {
    SignedFile file = good;
    file.metadata[key] = value;
    const std::string path = folder.write("lie", file.build());
    const auto info = read_cache_info(path);
    return info.ok() ? "no error" : info.status().message().substr(path.size() + 2);
  };
  for (const char* base : {"0", "-1", "1e39", "true", "[1]"})
    EXPECT_EQ(line("rope_base", base),
              fmt::format("metadata 'rope_base': found '{}', expected a finite number above 0",
                          std::string(base) == "1e39" ? "1e+39" : base));
  for (const char* factors : {"{}", "3", "[1]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,0]"})
    EXPECT_EQ(line("rope_factors", factors), "metadata 'rope_factors': expected 24 finite numbers above 0");
  EXPECT_EQ(line("rope_factors", "one"),
            "metadata 'rope_factors': found 'one', expected JSON: not JSON near offset 1");
  EXPECT_EQ(line("rotary_dim", "49"), "metadata 'rotary_dim': found '49', expected an integer in [0, 48]");
  EXPECT_EQ(line("rope_pairing", "x"),
            "metadata 'rope_pairing': found 'x', expected one of interleaved, half-split");
  EXPECT_EQ(line("dtype", "f64"), "metadata 'dtype': found 'f64', expected one of f16, f32, q8");
  EXPECT_EQ(line("layers", "1000000"),
            "metadata 'layers' and 'kv_heads': found 1000000 x 2, expected a product up to 262144");
  EXPECT_EQ(line("rows", "3"), "no error");
}

}  // namespace
}  // namespace kvfold::testing
