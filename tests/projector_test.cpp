// Flat rows, alignment, projectors and their files.
#include "engine/kv/projector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "engine/kv/alignment.h"
#include "engine/kv/ridge_projector.h"
#include "loaders/model_loader.h"
#include "tests/gaussian_tensor.h"
#include "tests/temporary.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

using ::testing::HasSubstr;

// A ridge of random numbers from 3 layers x 1 head x 8 to 2 layers x 2 heads x 4.
ProjectorData random_ridge(int64_t rank) {
  ProjectorData data{"ridge", {"aa", "A", {3, 1, 8}}, {"bb", "B", {2, 2, 4}}, {}, {{"command", "a \"b\"\n"}}};
  const int64_t in = row_width(data.source.shape);
  const int64_t out = row_width(data.target.shape);
  data.tensors = {
      {"ridge.mean_in", gaussian_tensor({in}, 1)},    {"ridge.scale_in", gaussian_tensor({in}, 2)},
      {"ridge.mean_out", gaussian_tensor({out}, 3)},  {"ridge.scale_out", gaussian_tensor({out}, 4)},
      {"ridge.down", gaussian_tensor({rank, in}, 5)}, {"ridge.up", gaussian_tensor({out, rank}, 6)},
      {"ridge.first", gaussian_tensor({out}, 7)}};
  return data;
}

std::string refusal(ProjectorData data) {
  const auto made = make_projector(std::move(data));
  return made.ok() ? "" : made.status().message();
}

TEST(FlatRows, ComeOutOfACacheAsTheyWereFed) {
  const TemporaryFolder folder;
  OpenOptions options;
  options.session.cache_type = CacheType::kF32;
  const auto session = tiny_session(folder, {}, options);
  const std::vector<TokenId> ids = {5, 6, 7, 8, 9};
  KvCache cache = session->make_cache();
  ASSERT_TRUE(session->feed(cache, ids).ok());
  const CacheShape& shape = cache.shape();
  const int width = row_width(shape);
  std::vector<float> rows(static_cast<size_t>(5) * width);
  load_rows(cache, 0, 5, rows.data());
  for (int slot = 0; slot < 5; ++slot)
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int head = 0; head < shape.kv_heads; ++head)
        for (const Part part : {Part::kKey, Part::kValue}) {
          std::vector<float> one(static_cast<size_t>(shape.head_dim));
          cache.load(part, layer, head, slot, one.data());
          EXPECT_EQ(std::memcmp(one.data(), &rows[slot * width + row_offset(shape, part, layer, head)],
                                one.size() * sizeof(float)),
                    0);
        }
  // A cache of these rows goes on as the cache that they came from.
  auto copy = cache_of_rows(session->pool(), shape, ids, rows.data(), "copy");
  ASSERT_TRUE(copy.ok());
  const std::vector<TokenId> next = {10};
  EXPECT_EQ(session->feed(copy.value(), next).value(), session->feed(cache, next).value());
  EXPECT_EQ(copy.value().rows().sources.back(), "copy");
  EXPECT_EQ(copy.value().rows().origins[3].row, 3);
}

TEST(Alignment, RowsEndWhereTheOtherHasSeenAsMuch) {
  // Two tokenizers over one text: bytes, and bytes with merges.
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  const Tokenizer& merges = session->tokenizer();
  const std::string text = "the theme, then; \xC3\xA4 hen in the thesis";
  const std::vector<TokenId> whole = merges.encode(text);
  std::vector<TokenId> bytes;
  for (const char c : text) {
    const std::vector<TokenId> one = merges.encode(std::string(1, c));
    ASSERT_EQ(one.size(), 1U);
    bytes.push_back(one[0]);
  }
  ASSERT_LT(whole.size(), bytes.size());
  const auto check = [&](const std::vector<TokenId>& source, const std::vector<TokenId>& target) {
    const auto aligned = align(merges, source, merges, target);
    ASSERT_TRUE(aligned.ok()) << aligned.status().message();
    const auto length = [&](const std::vector<TokenId>& ids, size_t count) {
      size_t n = 0;
      for (size_t i = 0; i < count; ++i) n += merges.token_bytes(ids[i]).size();
      return n;
    };
    const std::vector<int>& rows = aligned.value().source_row;
    ASSERT_EQ(rows.size(), target.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t end = length(target, i + 1);
      EXPECT_GE(length(source, static_cast<size_t>(rows[i]) + 1), end);  // it has seen all of it,
      EXPECT_LT(length(source, static_cast<size_t>(rows[i])), end);      // and the row before has not
    }
    EXPECT_EQ(rows.back(), static_cast<int>(source.size()) - 1);
  };
  check(whole, bytes);
  check(bytes, whole);
  check(whole, whole);
}

// SPM writes a space before a text, and a BOS before that: neither is of the text.
TEST(Alignment, WhatATokenizerPutsBeforeATextIsNoneOfIt) {
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  const Tokenizer& plain = session->tokenizer();
  LoadedVocabulary loaded = load_vocabulary(KVFOLD_SOURCE_DIR "/tests/data/tokenizers/spm.model").value();
  loaded.source.add_bos = true;
  const auto spm = Tokenizer::create(loaded.source, loaded.storage).value();
  const std::string text = "the thesis, then";
  const std::vector<TokenId> with_bos = spm->encode(text);
  ASSERT_EQ(with_bos[0], spm->source().bos);
  ASSERT_EQ(spm->token_bytes(with_bos[1])[0], ' ');
  // Bytes of the text behind each token.
  const auto ends = [&](const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
    std::vector<size_t> out;
    std::string all;
    for (const TokenId id : ids) {
      if (id != spm->source().bos || &tokenizer != spm.get()) all += tokenizer.token_bytes(id);
      out.push_back(all.starts_with(' ') ? all.size() - 1 : all.size());
    }
    EXPECT_EQ(out.back(), text.size());
    return out;
  };
  const auto check = [&](const Tokenizer& source, const std::vector<TokenId>& from, const Tokenizer& target,
                         const std::vector<TokenId>& to) {
    const AlignedTokens aligned = align(source, from, target, to).value();
    EXPECT_EQ(aligned.source, from);
    EXPECT_EQ(aligned.target, to);
    const std::vector<size_t> seen = ends(source, from);
    std::vector<int> expected;  // the first row that has seen as much
    for (const size_t end : ends(target, to))
      expected.push_back(static_cast<int>(std::lower_bound(seen.begin(), seen.end(), end) - seen.begin()));
    EXPECT_EQ(aligned.source_row, expected);
  };
  const std::vector<TokenId> without_bos = spm->encode(text, {.add_bos = false});
  for (const std::vector<TokenId>& ids : {with_bos, without_bos}) {
    check(*spm, ids, plain, plain.encode(text));
    check(plain, plain.encode(text), *spm, ids);
    check(*spm, ids, *spm, with_bos);
  }
}

TEST(Alignment, RefusesTokensOfDifferentTexts) {
  const TemporaryFolder folder;
  const auto session = tiny_session(folder);
  const Tokenizer& t = session->tokenizer();
  const auto refused = align(t, t.encode("some text"), t, t.encode("some test"));
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.status().message(), HasSubstr("they differ at byte 7 of 9 and 9"));
  const auto line = [&](const std::string& a, const std::string& b) {
    return align(t, t.encode(a), t, t.encode(b)).status().message();
  };
  const std::string differ = "align: the tokens of the two models are not of one text: they differ ";
  EXPECT_EQ(line("some", "some text"), differ + "at byte 4 of 4 and 9");
  EXPECT_EQ(line("some text", "some"), differ + "at byte 4 of 9 and 4");
  EXPECT_EQ(line("  text", "text"), differ + "at byte 0 of 6 and 4");
  EXPECT_EQ(align(t, t, "").status().message(), "align: a text without tokens");
  EXPECT_EQ(line("text", ""), "align: a text without tokens");
}

TEST(RidgeProjector, IsItsFormula) {
  const ProjectorData data = random_ridge(5);
  const auto& t = data.tensors;
  const auto projector = make_projector(data);
  ASSERT_TRUE(projector.ok()) << projector.status().message();
  constexpr int kRows = 3;
  const std::vector<float> x = gaussian_tensor({kRows, 48}, 9).data;
  std::vector<float> y(size_t{kRows} * 32);
  ThreadPool threads(2);
  projector.value()->apply(x.data(), kRows, true, y.data(), threads);
  EXPECT_TRUE(std::equal(y.begin(), y.begin() + 32, t.at("ridge.first").data.begin()));
  for (int r = 1; r < kRows; ++r)
    for (int o = 0; o < 32; ++o) {
      double sum = 0;
      for (int k = 0; k < 5; ++k) {
        double z = 0;
        for (int i = 0; i < 48; ++i)
          z += static_cast<double>(t.at("ridge.down").data[k * 48 + i]) * t.at("ridge.scale_in").data[i] *
               (x[r * 48 + i] - t.at("ridge.mean_in").data[i]);
        sum += t.at("ridge.up").data[o * 5 + k] * z;
      }
      sum = t.at("ridge.mean_out").data[o] + t.at("ridge.scale_out").data[o] * sum;
      EXPECT_NEAR(y[r * 32 + o], sum, 1e-4 * (1 + std::abs(sum)));  // observed 4e-6
    }
  // A document's later rows are projected alike when they come alone.
  std::vector<float> last(32);
  projector.value()->apply(&x[2 * 48], 1, false, last.data(), threads);
  EXPECT_TRUE(std::equal(last.begin(), last.end(), y.begin() + 64));
}

TEST(RidgeProjector, RefusesTensorsThatDoNotFit) {
  ProjectorData data = random_ridge(5);
  data.tensors["ridge.up"].shape = {16, 10};
  EXPECT_THAT(refusal(data), HasSubstr("'ridge.up': found the shape [16,10], expected [32,5]"));
  data = random_ridge(5);
  data.tensors.erase("ridge.down");
  EXPECT_THAT(refusal(data), HasSubstr("'ridge.down' is missing"));
  data = random_ridge(5);
  data.tensors["mlp.up"] = gaussian_tensor({1}, 1);
  EXPECT_THAT(refusal(data), HasSubstr("'mlp.up' is none of those of the kind ridge"));
  data = random_ridge(5);
  data.tensors["ridge.up"].data[3] = NAN;
  EXPECT_THAT(refusal(data), HasSubstr("'ridge.up': element 3 is nan"));
  data = random_ridge(5);
  data.kind = "magic";
  EXPECT_THAT(refusal(data), HasSubstr("unknown kind 'magic', expected one of ridge"));
}

// SmolLM2-135M, SmolLM2-360M, TinyLlama-1.1B, Qwen2.5-0.5B, each to each and to itself.
TEST(RidgeProjector, CrossesBetweenTheShapesOfAllModelsOfThePlan) {
  constexpr CacheShape kShapes[] = {{30, 3, 64}, {32, 5, 64}, {22, 4, 64}, {24, 2, 64}};
  ThreadPool threads(2);
  for (const CacheShape& from : kShapes)
    for (const CacheShape& to : kShapes) {
      const int64_t in = row_width(from);
      const int64_t out = row_width(to);
      // Every target dimension is the sum of two source dimensions and its own number.
      ProjectorData data{"ridge", {"", "", from}, {"", "", to}, {}, {}};
      data.tensors["ridge.mean_in"] = {{in}, std::vector<float>(static_cast<size_t>(in))};
      data.tensors["ridge.scale_in"] = {{in}, std::vector<float>(static_cast<size_t>(in), 1.0F)};
      data.tensors["ridge.scale_out"] = {{out}, std::vector<float>(static_cast<size_t>(out), 1.0F)};
      ProjectorTensor own{{out}, {}};
      for (int64_t i = 0; i < out; ++i) own.data.push_back(static_cast<float>(i % 512));
      data.tensors["ridge.mean_out"] = own;
      ProjectorTensor down{{1, in}, std::vector<float>(static_cast<size_t>(in))};
      down.data.front() = down.data.back() = 1;
      data.tensors["ridge.down"] = down;
      data.tensors["ridge.up"] = {{out, 1}, std::vector<float>(static_cast<size_t>(out), 1.0F)};
      const auto projector = make_projector(std::move(data));
      ASSERT_TRUE(projector.ok()) << projector.status().message();
      std::vector<float> x(static_cast<size_t>(2 * in));
      x[static_cast<size_t>(in)] = 3;
      x.back() = 4;
      std::vector<float> y(static_cast<size_t>(2 * out));
      projector.value()->apply(x.data(), 2, true, y.data(), threads);
      const auto pool = PagePool::create(CacheType::kF32, to.head_dim, size_t{1} << 30);
      ASSERT_TRUE(pool.ok());
      const std::vector<TokenId> tokens = {1, 2};
      const auto cache = cache_of_rows(pool.value(), to, tokens, y.data(), "x");
      ASSERT_TRUE(cache.ok());
      std::vector<float> lane(static_cast<size_t>(to.head_dim));
      cache.value().load(Part::kValue, to.layers - 1, to.kv_heads - 1, 1, lane.data());
      EXPECT_EQ(lane.back(), static_cast<float>((out - 1) % 512) + 7);
      cache.value().load(Part::kKey, 0, 0, 0, lane.data());
      EXPECT_EQ(lane[5], 5);
    }
}

TEST(ProjectorFile, HoldsWhatWasSaved) {
  const TemporaryFolder folder;
  const ProjectorData data = random_ridge(5);
  ASSERT_TRUE(save_projector(data, folder.file("p")).ok());
  EXPECT_EQ(save_projector(data, folder.file("absent/p")).message(),
            folder.file("absent/p") + ": cannot create: No such file or directory");
  const auto loaded = load_projector(folder.file("p"));
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded.value().kind, "ridge");
  EXPECT_EQ(loaded.value().source.fingerprint, "aa");
  EXPECT_EQ(loaded.value().target.shape, data.target.shape);
  EXPECT_EQ(loaded.value().notes, data.notes);
  ASSERT_EQ(loaded.value().tensors.size(), data.tensors.size());
  for (const auto& [name, tensor] : data.tensors) {
    EXPECT_EQ(loaded.value().tensors.at(name).shape, tensor.shape);
    EXPECT_EQ(loaded.value().tensors.at(name).data, tensor.data);
  }
}

TEST(ProjectorFile, HalvesAreRoundedAndSmall) {
  const TemporaryFolder folder;
  ProjectorData data = random_ridge(400);
  data.tensors["ridge.down"].half = data.tensors["ridge.up"].half = true;
  ASSERT_TRUE(save_projector(data, folder.file("p")).ok());
  EXPECT_LT(std::filesystem::file_size(folder.file("p")), 400 * 80 * 2 + 8192U);
  const auto loaded = load_projector(folder.file("p"));
  ASSERT_TRUE(loaded.ok());
  const ProjectorTensor& up = loaded.value().tensors.at("ridge.up");
  EXPECT_TRUE(up.half);
  for (size_t i = 0; i < up.data.size(); ++i)
    EXPECT_NEAR(up.data[i], data.tensors["ridge.up"].data[i], std::abs(up.data[i]) * 0x1.0p-10);
}

TEST(ProjectorFile, RefusesDamageAtEveryPlace) {
  const TemporaryFolder folder;
  ASSERT_TRUE(save_projector(random_ridge(2), folder.file("p")).ok());
  const std::string good = TemporaryFolder::read(folder.file("p"));
  for (size_t at = 0; at < good.size(); at += 37) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    const auto loaded = load_projector(folder.write("bad", bad));
    EXPECT_FALSE(loaded.ok()) << at;
    if (!loaded.ok()) {
      EXPECT_THAT(loaded.status().message(), HasSubstr(folder.file("bad")));
    }
  }
  for (size_t size = 1; size < good.size(); size += 311)
    EXPECT_FALSE(load_projector(folder.write("bad", good.substr(0, size))).ok()) << size;
}

// Each block's norm: of a whole matrix, and of factors without their product.
TEST(LayerFlow, IsTheNormOfEachBlock) {
  const ProjectorData factors = random_ridge(5);
  const std::vector<float>& down = factors.tensors.at("ridge.down").data;
  const std::vector<float>& up = factors.tensors.at("ridge.up").data;
  constexpr int kIn = 48;  // 3 layers of 16 columns to 2 of 16 rows
  constexpr int kOut = 32;
  ProjectorData whole = factors;
  ProjectorTensor weight{{kOut, kIn}, {}, false};
  double blocks[2][3] = {};
  for (int i = 0; i < kOut; ++i)
    for (int j = 0; j < kIn; ++j) {
      double product = 0;
      for (int k = 0; k < 5; ++k) product += double{up[i * 5 + k]} * double{down[k * kIn + j]};
      weight.data.push_back(static_cast<float>(product));
      blocks[i / 16][j / 16] += product * product;
    }
  whole.tensors.erase("ridge.down");
  whole.tensors.erase("ridge.up");
  whole.tensors["ridge.weight"] = weight;
  ThreadPool threads(2);
  for (const ProjectorData& data : {factors, whole}) {
    const Matrix flow = layer_flow(data, threads);
    ASSERT_EQ(flow.rows, 2);
    ASSERT_EQ(flow.columns, 3);
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 3; ++b)
        EXPECT_NEAR(flow.row(a)[b] / std::sqrt(blocks[a][b]), 1, 1e-5);  // observed 2e-7
  }
}

}  // namespace
}  // namespace kvfold::testing
