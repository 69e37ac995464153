// Caches as other tools hold them: what export_cache() writes is RoPE by its formula, what import_cache()
// reads is turned back, and files that mean something else are refused with the whole line.
#include "engine/kv/exchange.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/kv/ops.h"
#include "engine/random.h"
#include "tests/must.h"
#include "tests/signed_file.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

constexpr CacheShape kShape = {2, 2, 6};  // of the 6 dimensions 4 are turned

CacheModelInfo info(RopePairing pairing = RopePairing::kHalfSplit) {
  return {"0123456789abcdef", "llama", "tiny", 100, pairing, 4};
}

std::shared_ptr<PagePool> make_pool(CacheType type = CacheType::kF32, size_t pages = 1000) {
  return must(PagePool::create(type, kShape.head_dim, pages * kv_page_bytes(type, kShape.head_dim)));
}

// Five rows at positions 0, 3, -2, 1000, 3.
KvCache random_cache(const std::shared_ptr<PagePool>& pool) {
  KvCache cache(pool, kShape);
  EXPECT_TRUE(cache.grow(std::vector<TokenId>{7, 8, 9, 10, 11}).ok());
  Random random(1);
  std::vector<float> row(kShape.head_dim);
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < kShape.lanes(); ++lane)
      for (int slot = 0; slot < cache.size(); ++slot) {
        for (float& x : row) x = static_cast<float>(random.gaussian());
        const auto place = cache.row_place(part, lane, slot);
        kv_store_row(pool->type(), part, kShape.head_dim, pool->write(place.page), place.row, row.data());
      }
  return must(set_positions(cache, std::vector<int32_t>{0, 3, -2, 1000, 3}));
}

float number_at(const SignedFile& file, const std::string& tensor, size_t index) {
  float x = 0;
  std::memcpy(&x, file.tensors.at(tensor).bytes.data() + index * sizeof x, sizeof x);
  return x;
}

class Exchange : public ::testing::Test {
 protected:
  SignedFile exported(const KvCache& cache, const CacheModelInfo& model, bool rotated) {
    const Status status = export_cache(cache, model, rotated, folder_.file("e.safetensors"));
    EXPECT_TRUE(status.ok()) << status.message();
    return SignedFile::parse(TemporaryFolder::read(folder_.file("e.safetensors")));
  }
  Result<KvCache> import(const SignedFile& file, const CacheModelInfo& model,
                         const std::shared_ptr<PagePool>& pool) {
    return import_cache(folder_.write("i.safetensors", file.build()), model, kShape, pool);
  }
  // The line, without the file's name.
  std::string refusal(const SignedFile& file, const std::shared_ptr<PagePool>& pool = make_pool()) {
    const Result<KvCache> made = import(file, info(), pool);
    EXPECT_EQ(pool->pages_held(), made.ok() ? 8U : 0U);
    if (made.ok()) return "no error";
    const std::string& line = made.status().message();
    EXPECT_EQ(wrong_with(line, folder_.file("i.safetensors"), {}), "");
    return line.substr(folder_.file("i.safetensors: ").size());
  }
  SignedFile good() { return exported(random_cache(make_pool()), info(), true); }
  TemporaryFolder folder_;
};

// Pair i is turned by position * base^(-2i / rotary_dim) / factor, and what is not turned stays.
TEST_F(Exchange, KeysAreTurnedByTheFormula) {
  for (const RopePairing pairing : {RopePairing::kHalfSplit, RopePairing::kInterleaved}) {
    const KvCache cache = random_cache(make_pool());
    CacheModelInfo model = info(pairing);
    model.rope_factors = {1, 4};
    const SignedFile turned = exported(cache, model, true);
    const SignedFile plain = exported(cache, model, false);
    const bool neighbours = pairing == RopePairing::kInterleaved;
    std::vector<float> row(kShape.head_dim);
    for (int slot = 0; slot < cache.size(); ++slot) {
      cache.load(Part::kKey, 1, 1, slot, row.data());
      const auto first = static_cast<size_t>((cache.size() + slot) * kShape.head_dim);
      for (size_t i = 0; i < 2; ++i) {
        const double x = row[neighbours ? 2 * i : i];
        const double y = row[neighbours ? 2 * i + 1 : i + 2];
        const double angle = cache.rows().positions[slot] * (i == 0 ? 1.0 : std::pow(100.0, -0.5) / 4);
        const auto expected_x = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
        const auto expected_y = static_cast<float>(x * std::sin(angle) + y * std::cos(angle));
        EXPECT_FLOAT_EQ(number_at(turned, "layers.1.k", first + i), expected_x) << slot;
        EXPECT_FLOAT_EQ(number_at(turned, "layers.1.k", first + i + 2), expected_y) << slot;
        EXPECT_EQ(number_at(plain, "layers.1.k", first + i), static_cast<float>(x));
        EXPECT_EQ(number_at(plain, "layers.1.k", first + i + 2), static_cast<float>(y));
      }
      EXPECT_EQ(number_at(turned, "layers.1.k", first + 4), row[4]);
      cache.load(Part::kValue, 1, 1, slot, row.data());
      EXPECT_EQ(number_at(turned, "layers.1.v", first + 1), row[1]);
    }
  }
}

// Out and back: exactly where keys were not turned, within the rounding of two turns where they were.
TEST_F(Exchange, WhatIsExportedIsImported) {
  for (const RopePairing pairing : {RopePairing::kHalfSplit, RopePairing::kInterleaved})
    for (const bool rotated : {false, true}) {
      const auto pool = make_pool();
      const KvCache cache = random_cache(pool);
      const KvCache back = must(import(exported(cache, info(pairing), rotated), info(pairing), pool));
      EXPECT_EQ(back.rows().tokens, cache.rows().tokens);
      EXPECT_EQ(back.rows().positions, cache.rows().positions);
      EXPECT_EQ(back.next_position(), 1001);
      EXPECT_EQ(back.rows().sources[back.rows().origins[4].source], "i.safetensors");
      EXPECT_EQ(back.rows().origins[4].row, 4);
      std::vector<float> a(kShape.head_dim), b(kShape.head_dim);
      for (const Part part : {Part::kKey, Part::kValue})
        for (int slot = 0; slot < cache.size(); ++slot) {
          cache.load(part, 1, 0, slot, a.data());
          back.load(part, 1, 0, slot, b.data());
          for (size_t d = 0; d < a.size(); ++d)
            EXPECT_NEAR(a[d], b[d], part == Part::kKey && rotated ? 5e-7 : 0);  // observed: 1.2e-7
        }
    }
}

// A file of another tool says little: tokens, and what its tensors are.
TEST_F(Exchange, WhatAFileLeavesOutHasADefault) {
  SignedFile file = good();
  const auto pool = make_pool();
  const std::vector<float> turned = [&] {
    std::vector<float> row(kShape.head_dim);
    must(import(file, info(), pool)).load(Part::kKey, 0, 0, 1, row.data());
    return row;
  }();
  file.metadata = {{"tokens", "[1,2,3,4,5]"}, {"positions", "[0,3,-2,1000,3]"}};
  for (auto& [name, tensor] : file.tensors) tensor.shape.insert(tensor.shape.begin(), 1);
  const KvCache cache = must(import(file, info(), pool));
  EXPECT_EQ(cache.next_position(), 1001);
  std::vector<float> row(kShape.head_dim);
  cache.load(Part::kKey, 0, 0, 1, row.data());
  EXPECT_EQ(row, turned);  // rotated, half-split
  file.metadata.erase("positions");
  const KvCache counted = must(import(file, info(), pool));
  EXPECT_EQ(counted.rows().positions, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(counted.next_position(), 5);
}

// Keys in interleaved pairs, to a model of either kind.
TEST_F(Exchange, InterleavedPairsAreReordered) {
  SignedFile file = exported(random_cache(make_pool()), info(), false);
  std::vector<float> a(kShape.head_dim), b(kShape.head_dim);
  file.metadata["rope_pairing"] = "interleaved";
  must(import(file, info(RopePairing::kInterleaved), make_pool())).load(Part::kKey, 0, 1, 2, a.data());
  must(import(file, info(), make_pool())).load(Part::kKey, 0, 1, 2, b.data());
  for (size_t d = 0; d < a.size(); ++d) EXPECT_EQ(a[d], number_at(file, "layers.0.k", (5 + 2) * 6 + d));
  EXPECT_EQ(b, (std::vector<float>{a[0], a[2], a[1], a[3], a[4], a[5]}));
}

TEST_F(Exchange, HalvesAreReadAsTheyAre) {
  for (const auto& [dtype, bits] :
       {std::pair{"F16", uint16_t{0x3E00}}, std::pair{"BF16", uint16_t{0x3FC0}}}) {
    SignedFile file = good();
    SignedFile::Tensor& tensor = file.tensors.at("layers.1.v");
    tensor.dtype = dtype;
    tensor.bytes.clear();
    for (int i = 0; i < 60; ++i) tensor.bytes.append(reinterpret_cast<const char*>(&bits), sizeof bits);
    const KvCache cache = must(import(file, info(), make_pool()));
    std::vector<float> row(kShape.head_dim);
    cache.load(Part::kValue, 1, 1, 4, row.data());
    EXPECT_EQ(row, std::vector<float>(kShape.head_dim, 1.5F)) << dtype;
  }
}

TEST_F(Exchange, ACacheWithoutRowsGoesOutAndBack) {
  const auto pool = make_pool();
  const KvCache back = must(import(exported(KvCache(pool, kShape), info(), true), info(), pool));
  EXPECT_EQ(back.size(), 0);
  EXPECT_EQ(back.next_position(), 0);
}

TEST_F(Exchange, ExportRefusesLanesThatLackRows) {
  const KvCache whole = random_cache(make_pool());
  const KvCache ragged =
      must(erase(whole, must(Selection::parse("layers=1 heads=0 rows=2", whole.shape(), whole.size()))));
  EXPECT_EQ(export_cache(ragged, info(), true, folder_.file("x")).message(),
            "export: layer 1 head 0 holds 4 of 5 rows; other tools have no word for that");
  EXPECT_EQ(export_cache(whole, info(), true, folder_.file("absent/x")).message(),
            folder_.file("absent/x") + ": cannot create: No such file or directory");
  EXPECT_EQ(folder_.entries(), 0U);
}

TEST_F(Exchange, FilesThatCannotBeReadAreRefused) {
  const auto pool = make_pool();
  EXPECT_EQ(import_cache(folder_.file("absent"), info(), kShape, pool).status().message(),
            folder_.file("absent") + ": cannot open: No such file or directory");
  EXPECT_EQ(import_cache(folder_.write("text", "hello, I am a text"), info(), kShape, pool).ok(), false);
}

TEST_F(Exchange, MetadataThatContradictsIsRefused) {
  const auto with = [&](const std::string& key, const std::string& value) {
    SignedFile file = good();
    file.metadata[key] = value;
    return refusal(file);
  };
  SignedFile file = good();
  file.metadata.erase("tokens");
  EXPECT_EQ(refusal(file), "metadata key 'tokens' is missing");
  EXPECT_EQ(with("kvfold_format", "1"),
            "a cache file of kvfold, which needs no import; expected one that another tool wrote");
  EXPECT_EQ(with("tokens", "[1,2,3,4,-5]"),
            "metadata 'tokens': element 4: found '-5', expected an integer in [0, 2147483647]");
  EXPECT_EQ(with("positions", "[1,2,3,4]"), "metadata 'positions': found 4 elements for 5 tokens");
  EXPECT_EQ(with("positions", "[1,2,3,4,1073741825]"),
            "metadata 'positions': element 4: found '1073741825', expected an integer in [-1073741824, "
            "1073741824]");
  EXPECT_EQ(with("next_position", "1.5"),
            "metadata 'next_position': found '1.5', expected an integer in [-1073741824, 1073741824]");
  EXPECT_EQ(with("keys_rotated", "yes"), "metadata 'keys_rotated': found 'yes', expected one of true, false");
  EXPECT_EQ(with("rope_pairing", "norm"),
            "metadata 'rope_pairing': found 'norm', expected one of interleaved, half-split");
  EXPECT_EQ(with("rope_base", "10000"),
            "metadata 'rope_base': found '10000', expected 100, as the model has it");
  EXPECT_EQ(with("rope_base", "\"100\""),
            "metadata 'rope_base': found '\"100\"', expected 100, as the model has it");
  EXPECT_EQ(with("rope_base", "x"), "metadata 'rope_base': found 'x', expected JSON: not JSON near offset 1");
  EXPECT_EQ(with("rotary_dim", "6"), "metadata 'rotary_dim': found '6', expected 4, as the model has it");
  EXPECT_EQ(with("rope_base", "100.00000000001"), "no error");
  // Keys that were not turned may be of any angles.
  file = exported(random_cache(make_pool()), info(), false);
  file.metadata["rope_base"] = "10000";
  EXPECT_EQ(refusal(file), "no error");
}

TEST_F(Exchange, TensorsThatDoNotFitAreRefused) {
  SignedFile file = good();
  file.tensors.erase("layers.1.v");
  EXPECT_EQ(refusal(file), "tensor 'layers.1.v' is missing");
  file = good();
  file.tensors.at("layers.0.k").dtype = "I32";
  EXPECT_EQ(refusal(file), "tensor 'layers.0.k': found I32, expected F32, F16 or BF16");
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{2, 30}, {5, 2, 6}, {2, 1, 5, 6}, {1, 2, 6, 5}, {1, 1, 2, 5, 6}}) {
    file = good();
    file.tensors.at("layers.0.v").shape = shape;
    std::string found;
    for (const int64_t n : shape) found += (found.empty() ? "" : ",") + std::to_string(n);
    EXPECT_EQ(refusal(file), "tensor 'layers.0.v': found the shape [" + found +
                                 "], expected [2,5,6]: KV heads, rows, head_dim");
  }
  file = good();
  file.tensors["layers.2.k"] = file.tensors["layers.1.k"];
  EXPECT_EQ(refusal(file), "found 5 tensors, expected 4, a K and a V for each of 2 layers");
}

TEST_F(Exchange, ValuesThatPagesCannotHoldAreRefused) {
  SignedFile file = good();
  file.set("layers.1.v", 17, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(refusal(file), "tensor 'layers.1.v': element 17 is nan, expected a number");
  file.set("layers.1.v", 17, -70000);
  EXPECT_EQ(refusal(file), "no error");
  EXPECT_EQ(refusal(file, make_pool(CacheType::kQ8)), "no error");
  EXPECT_EQ(refusal(file, make_pool(CacheType::kF16)),
            "tensor 'layers.1.v': row 2: layer 1 head 0: V becomes -70000, beyond what pages of type f16 can "
            "hold");
  file.set("layers.1.v", 17, 65519);  // rounds to the largest, 65504
  EXPECT_EQ(refusal(file, make_pool(CacheType::kF16)), "no error");
  // Each half of the pair is small enough; turned back they are not.
  file = good();
  file.set("layers.1.k", (5 + 1) * 6, 60000);
  file.set("layers.1.k", (5 + 1) * 6 + 2, -60000);
  EXPECT_EQ(refusal(file, make_pool(CacheType::kF16)),
            "tensor 'layers.1.k': row 1: layer 1 head 1: K becomes -67866.75, beyond what pages of type f16 "
            "can hold");
}

TEST_F(Exchange, AShortPoolIsAnErrorAndLeaksNothing) {
  EXPECT_EQ(refusal(good(), make_pool(CacheType::kF32, 7)),
            "cache pool exhausted: 6144 bytes wanted, 0 held, 5376 allowed");
}

}  // namespace
}  // namespace kvfold::testing
