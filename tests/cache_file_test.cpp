// Cache files: what is saved comes back bit for bit, damage and lies are refused with one line and leave the
// pool as it was, and a file that cannot be written leaves the old one.
#include "engine/kv/cache_file.h"

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/resource.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <optional>

#include "engine/kv/exchange.h"
#include "engine/kv/ops.h"
#include "engine/random.h"
#include "engine/safetensors.h"
#include "tests/far_memory.h"
#include "tests/must.h"
#include "tests/temporary.h"

namespace {
size_t largest_allocation = 0;
}  // namespace

// Remembers the largest, so that a test can tell that a file's claims did not become memory. Not inlined: GCC
// would take free() for a wrong match of new.
[[gnu::noinline]] void* operator new(size_t size) {
  largest_allocation = std::max(largest_allocation, size);
  void* memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace kvfold::testing {
namespace {

constexpr CacheShape kShape = {2, 2, 48};  // q8: groups of 32 and of 16
constexpr CacheType kTypes[] = {CacheType::kF16, CacheType::kF32, CacheType::kQ8};

CacheModelInfo tiny_info() {
  return {"0123456789abcdef", "llama", "tiny", 10000, RopePairing::kHalfSplit, 48};
}

std::shared_ptr<PagePool> make_pool(CacheType type, size_t pages = 1000) {
  return must(PagePool::create(type, kShape.head_dim, pages * kv_page_bytes(type, kShape.head_dim)));
}

// Rows of any bits at all: what is copied is bits, be they NaNs.
void feed(KvCache& cache, int rows, uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> tokens(static_cast<size_t>(rows));
  for (TokenId& token : tokens) token = static_cast<TokenId>(random.below(50000));
  const int first = cache.size();
  ASSERT_TRUE(cache.grow(tokens).ok());
  std::vector<uint64_t> noise(cache.pool()->page_bytes() / sizeof(uint64_t));
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < cache.shape().lanes(); ++lane)
      for (int slot = first; slot < cache.size(); ++slot) {
        if (slot == first || slot % kPageRows == 0)
          for (uint64_t& x : noise) x = random.next();
        const PageTable::RowPlace place = cache.row_place(part, lane, slot);
        kv_copy_row(cache.type(), part, cache.shape().head_dim,
                    reinterpret_cast<const std::byte*>(noise.data()), slot % kPageRows,
                    cache.pool()->write(place.page), place.row);
      }
}

KvCache fed(const std::shared_ptr<PagePool>& pool, int rows, uint64_t seed = 1) {
  KvCache cache(pool, kShape);
  feed(cache, rows, seed);
  return cache;
}

Selection select(const KvCache& cache, const std::string& text) {
  return must(Selection::parse(text, cache.shape(), cache.size()));
}

// The bits of one row, wherever in its page it lies.
std::vector<std::byte> row_bits(const KvCache& cache, Part part, int lane, int slot) {
  std::vector<std::byte> page(cache.pool()->page_bytes());
  const PageTable::RowPlace place = cache.lanes().table(part, lane).place(slot);
  kv_copy_row(cache.type(), part, cache.shape().head_dim, cache.pool()->read(place.page), place.row,
              page.data(), 0);
  return page;
}

void expect_same_cache(const KvCache& a, const KvCache& b) {
  ASSERT_EQ(a.shape(), b.shape());
  ASSERT_EQ(a.type(), b.type());
  EXPECT_EQ(a.rows().tokens, b.rows().tokens);
  EXPECT_EQ(a.rows().positions, b.rows().positions);
  EXPECT_EQ(a.rows().origins, b.rows().origins);
  EXPECT_EQ(a.rows().sources, b.rows().sources);
  EXPECT_EQ(a.next_position(), b.next_position());
  for (const Part part : {Part::kKey, Part::kValue})
    for (int lane = 0; lane < a.shape().lanes(); ++lane)
      for (int slot = 0; slot < a.size(); ++slot) {
        const bool held = a.lanes().table(part, lane).holds(slot);
        ASSERT_EQ(held, b.lanes().table(part, lane).holds(slot)) << "lane " << lane << " slot " << slot;
        if (held) {
          ASSERT_EQ(row_bits(a, part, lane, slot), row_bits(b, part, lane, slot))
              << "lane " << lane << " slot " << slot;
        }
      }
}

// Saves, loads into a pool of its own, compares, saves again: the same bytes.
void expect_round_trip(const KvCache& cache) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const Status saved = save_cache(cache, tiny_info(), path);
  ASSERT_TRUE(saved.ok()) << saved.message();
  const std::shared_ptr<PagePool> pool = make_pool(cache.type());
  {
    const KvCache loaded = must(load_cache(path, tiny_info(), kShape, pool));
    expect_same_cache(cache, loaded);
    ASSERT_TRUE(save_cache(loaded, tiny_info(), folder.file("b.safetensors")).ok());
    // A loaded cache goes on like any other.
    KvCache longer = loaded.fork();
    feed(longer, 3, 9);
    EXPECT_EQ(longer.next_position(), cache.next_position() + 3);
    EXPECT_EQ(loaded.size(), cache.size());
  }
  EXPECT_EQ(pool->pages_held(), 0U);
  EXPECT_EQ(TemporaryFolder::read(path), TemporaryFolder::read(folder.file("b.safetensors")));
  EXPECT_EQ(folder.entries(), 2U);
}

struct Made {
  const char* name;
  std::function<KvCache(const std::shared_ptr<PagePool>&)> make;
};
using Pool = std::shared_ptr<PagePool>;

KvCache ragged(const Pool& pool) {
  const KvCache cache = fed(pool, 70);
  return must(erase(cache, select(cache, "layers=1 heads=0 rows=3-40")));
}

// The rows' table written anew, the pages as they are.
KvCache with_rows(const KvCache& cache, const std::function<void(Rows&)>& change) {
  auto rows = std::make_shared<Rows>(cache.rows());
  change(*rows);
  return KvCache(cache.lanes(), rows, cache.next_position());
}

KvCache with_sources(const Pool& pool) {
  return with_rows(fed(pool, 5), [](Rows& rows) {
    rows.sources = {"fed", "b \"quoted\"\\\n.safetensors", "\u00e9\U0001F600", ""};
    rows.origins = {{3, 0, 0}, {1, 77, 1 | 2}, {2, 2147483647, 4 | 8 | 16}, {1, 0, 16}, {0, 4, 31}};
  });
}

const Made kMade[] = {
    {"empty", [](const Pool& pool) { return KvCache(pool, kShape); }},
    {"empty_at_a_position",
     [](const Pool& pool) {
       KvCache cache(pool, kShape);
       cache.set_next_position(-7);
       return cache;
     }},
    {"one_row", [](const Pool& pool) { return fed(pool, 1); }},
    {"a_page_but_one", [](const Pool& pool) { return fed(pool, 31); }},
    {"a_page", [](const Pool& pool) { return fed(pool, 32); }},
    {"a_page_and_one", [](const Pool& pool) { return fed(pool, 33); }},
    {"four_pages", [](const Pool& pool) { return fed(pool, 100); }},
    {"ragged", ragged},
    {"ragged_in_every_layer",
     [](const Pool& pool) {
       const KvCache cache = fed(pool, 80);
       return must(erase(cache, select(cache, "heads=1 rows=0,2,4,6-50,79")));
     }},
    {"a_lane_without_rows",
     [](const Pool& pool) {
       const KvCache cache = fed(pool, 40);
       return must(erase(cache, select(cache, "layers=0 heads=1")));
     }},
    {"a_layer_without_rows",
     [](const Pool& pool) {
       const KvCache cache = fed(pool, 40);
       return must(erase(cache, select(cache, "layers=1")));
     }},
    {"shared_with_a_longer_fork",
     [](const Pool& pool) {
       const KvCache cache = fed(pool, 40);
       KvCache fork = cache.fork();
       feed(fork, 30, 2);
       return cache;
     }},
    {"fork_that_grew",
     [](const Pool& pool) {
       static std::optional<KvCache> original;
       original = fed(pool, 40);
       KvCache fork = original->fork();
       feed(fork, 30, 2);
       original.reset();
       return fork;
     }},
    {"one_page_at_three_places",
     [](const Pool& pool) {
       const KvCache cache = fed(pool, 20);
       const KvSlice part = must(extract(cache, select(cache, "rows=3-9")));
       return must(insert(must(insert(cache, part, 5, {})), part, 0, {}));
     }},
    {"positions_that_run_backwards",
     [](const Pool& pool) {
       return must(set_positions(fed(pool, 6), std::vector<int32_t>{9, 9, -3, 1 << 29, -(1 << 29), 0}));
     }},
    {"several_sources", with_sources},
};

struct RoundTripCase {
  CacheType type;
  Made made;
};
std::vector<RoundTripCase> round_trip_cases() {
  std::vector<RoundTripCase> cases;
  for (const CacheType type : kTypes)
    for (const Made& made : kMade) cases.push_back({type, made});
  return cases;
}
std::string type_name(CacheType type) {
  return type == CacheType::kF16 ? "f16" : type == CacheType::kF32 ? "f32" : "q8";
}

class RoundTrip : public ::testing::TestWithParam<RoundTripCase> {};

TEST_P(RoundTrip, GivesTheSameBits) {
  const Pool pool = make_pool(GetParam().type);
  expect_round_trip(GetParam().made.make(pool));
  EXPECT_EQ(pool->pages_held(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Caches, RoundTrip, ::testing::ValuesIn(round_trip_cases()), [](const auto& param) {
  return type_name(param.param.type) + "_" + param.param.made.name;
});

// A random history of operations.
RC_GTEST_PROP(CacheFileProperty, AnyCacheRoundTrips, ()) {
  const CacheType type = *rc::gen::elementOf(std::vector<CacheType>(std::begin(kTypes), std::end(kTypes)));
  Random random(*rc::gen::arbitrary<uint64_t>());
  const Pool pool = make_pool(type);
  KvCache cache = fed(pool, static_cast<int>(random.below(70)), random.next());
  for (uint64_t steps = random.below(5); steps > 0; --steps) {
    Selection some = Selection::all(kShape, cache.size());
    std::erase_if(some.rows, [&](int) { return random.below(3) == 0; });
    std::erase_if(some.layers, [&](int) { return random.below(3) == 0; });
    std::erase_if(some.heads, [&](int) { return random.below(3) == 0; });
    const uint64_t kind = random.below(5);
    if (kind == 0) cache = must(erase(cache, some));
    if (kind == 1) cache = must(shift(cache, some.rows, static_cast<int32_t>(random.below(2000)) - 1000));
    if (kind == 2) feed(cache, static_cast<int>(random.below(40)), random.next());
    if (kind >= 3) {
      const KvSlice slice = must(extract(cache, some));
      cache = must(insert(cache, slice, static_cast<int>(random.below(cache.size() + 1)), {}));
    }
  }
  expect_round_trip(cache);
  RC_ASSERT(!::testing::Test::HasFailure());
}

class CacheFile : public ::testing::Test {
 protected:
  std::string save(const KvCache& cache, const char* name = "a.safetensors") {
    const Status status = save_cache(cache, tiny_info(), folder_.file(name));
    EXPECT_TRUE(status.ok()) << status.message();
    return folder_.file(name);
  }
  // Loading fails with one line that holds `words`, keeps no page, takes no more of them meanwhile than a
  // good load of these files does, and little other memory.
  void expect_refused(const std::string& path, CacheType type, const std::vector<std::string>& words,
                      const CacheModelInfo& info = tiny_info(), const CacheShape& shape = kShape) {
    const Pool pool = make_pool(type);
    largest_allocation = 0;
    const Result<KvCache> loaded = load_cache(path, info, shape, pool);
    // The largest of a good load of these files: the metadata's text, some 2 KiB; gtest's own come later.
    EXPECT_LT(largest_allocation, size_t{1} << 20);
    ASSERT_FALSE(loaded.ok());
    const std::string& message = loaded.status().message();
    EXPECT_TRUE(message.starts_with(path + ": ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 500 + path.size()) << message;
    for (const std::string& word : words)
      EXPECT_NE(message.find(word), std::string::npos) << message << "\nlacks: " << word;
    EXPECT_EQ(pool->pages_held(), 0U);
    EXPECT_LE(pool->peak_pages(), 20U);
  }
  TemporaryFolder folder_;
};

uint64_t header_size(const std::string& file) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  return 8 + length;
}

SafetensorsFile parse(const std::string& bytes) {
  return must(parse_safetensors(std::as_bytes(std::span(bytes)), "file"));
}

TEST_F(CacheFile, FlippedBitOfATensorIsRefusedByName) {
  for (const CacheType type : kTypes) {
    const std::string good = TemporaryFolder::read(save(ragged(make_pool(type))));
    const SafetensorsFile file = parse(good);
    EXPECT_EQ(file.tensors.size(), type == CacheType::kQ8 ? 12U : 6U);
    for (const auto& [name, tensor] : file.tensors) {
      const auto begin =
          static_cast<size_t>(tensor.bytes.data() - reinterpret_cast<const std::byte*>(good.data()));
      for (const size_t at : {size_t{0}, tensor.bytes.size() / 2, tensor.bytes.size() - 1}) {
        std::string bad = good;
        bad[begin + at] = static_cast<char>(bad[begin + at] ^ (1 << at % 8));
        expect_refused(folder_.write("bad", bad), type, {"tensor '" + name + "' is damaged"});
      }
    }
  }
}

TEST_F(CacheFile, FlippedBitOfTheHeaderIsRefused) {
  const std::string good =
      TemporaryFolder::read(save(with_rows(ragged(make_pool(CacheType::kQ8)), [](Rows& r) {
        r.tokens.assign(r.tokens.size(), 7);  // no longer than needed
      })));
  const size_t size = header_size(good);
  const Pool pool = make_pool(CacheType::kQ8);
  for (size_t at = 0; at < size; ++at)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      const std::string path = folder_.write("bad", bad);
      const Result<KvCache> loaded = load_cache(path, tiny_info(), kShape, pool);
      ASSERT_FALSE(loaded.ok()) << "byte " << at << " bit " << bit << " '" << bad.substr(at, 1) << "'";
      ASSERT_EQ(loaded.status().message().find('\n'), std::string::npos);
      ASSERT_EQ(pool->peak_pages(), 0U);
    }
}

TEST_F(CacheFile, TruncationIsRefused) {
  const std::string good = TemporaryFolder::read(save(fed(make_pool(CacheType::kF16), 3)));
  for (size_t size = 0; size < good.size(); size += size < header_size(good) ? 7 : 31)
    expect_refused(folder_.write("cut", good.substr(0, size)), CacheType::kF16, {});
  expect_refused(folder_.write("cut", good.substr(0, good.size() - 1)), CacheType::kF16, {"data_offsets"});
  expect_refused(folder_.write("longer", good + "x"), CacheType::kF16, {"1 bytes behind the last tensor"});
}

TEST_F(CacheFile, OtherFilesAreRefused) {
  expect_refused(folder_.file("absent"), CacheType::kF16, {"cannot open"});
  expect_refused(folder_.write("empty", ""), CacheType::kF16, {"empty file"});
  expect_refused(folder_.write("text", "hello, I am a text"), CacheType::kF16, {"header length"});
  expect_refused(folder_.write("other", std::string("\2\0\0\0\0\0\0\0{}", 10)), CacheType::kF16,
                 {"kvfold_format", "cache file"});
  std::filesystem::create_directory(folder_.file("folder"));
  expect_refused(folder_.file("folder"), CacheType::kF16, {"regular file"});
}

TEST_F(CacheFile, AnotherModelsFileIsRefusedWithBothShapes) {
  const std::string path = save(fed(make_pool(CacheType::kF16), 3));
  const std::string found = "found 'tiny' (0123456789abcdef), 2 layers x 2 KV heads x 48";
  CacheModelInfo info = tiny_info();
  info.fingerprint = "fedcba9876543210";
  info.name = "other\nname";
  expect_refused(path, CacheType::kF16, {found, "expected 'other?name' (fedcba9876543210), 2 x 2 x 48"},
                 info);
  for (const CacheShape& shape : {CacheShape{3, 2, 48}, CacheShape{2, 1, 48}, CacheShape{1, 4, 48}})
    expect_refused(path, CacheType::kF16,
                   {"another model", found, fmt::format("{} x {} x 48", shape.layers, shape.kv_heads)},
                   tiny_info(), shape);
}

TEST_F(CacheFile, AnotherPageTypeIsRefused) {
  for (const CacheType saved : kTypes)
    for (const CacheType wanted : kTypes) {
      if (saved == wanted) continue;
      expect_refused(save(fed(make_pool(saved), 3)), wanted,
                     {"pages of type " + type_name(saved) + ", expected " + type_name(wanted)});
    }
}

// A file of a cache, for changing.
struct Parts {
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafetensorsTensor> tensors;
};

struct Lie {
  const char* name;
  std::function<void(Parts&)> tell;
  std::vector<std::string> words;
};
// Found by what it contradicts.
Lie contradiction(const char* name, const char* key, const std::string& value,
                  std::vector<std::string> words) {
  return {name, [key, value](Parts& parts) { parts.metadata[key] = value; }, std::move(words)};
}
// Found by itself: the message names the key.
Lie metadata_lie(const char* name, const char* key, const std::string& value,
                 std::vector<std::string> words) {
  words.push_back(key);
  return contradiction(name, key, value, std::move(words));
}

class LyingCacheFile : public CacheFile, public ::testing::WithParamInterface<Lie> {};

// The metadata's own checksum is made anew, so that each lie is found by what it is.
TEST_P(LyingCacheFile, IsRefused) {
  const std::string good = TemporaryFolder::read(save(ragged(make_pool(CacheType::kF16))));
  SafetensorsFile file = parse(good);
  Parts parts{file.metadata, file.tensors};
  GetParam().tell(parts);
  std::string all;
  for (const auto& [key, value] : parts.metadata)
    if (key != "checksum") all += key + "=" + value + "\n";
  if (parts.metadata.contains("checksum"))
    parts.metadata["checksum"] = fmt::format("{:016x}", XXH3_64bits(all.data(), all.size()));
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : parts.tensors)
    entries.push_back({name, tensor.dtype, tensor.shape, [bytes = tensor.bytes] { return bytes; }});
  AtomicFile out = must(AtomicFile::create(folder_.file("lie")));
  ASSERT_TRUE(write_safetensors(out, parts.metadata, entries).ok());
  ASSERT_TRUE(out.commit().ok());
  expect_refused(folder_.file("lie"), CacheType::kF16, GetParam().words);
}

std::string list_of(int count, const std::string& element) {
  std::string out = "[";
  for (int i = 0; i < count; ++i) out += (i == 0 ? "" : ",") + element;
  return out + "]";
}
// 70 rows, the last of them `element`.
std::string seventy(const std::string& element, const std::string& others = "1") {
  std::string out = list_of(69, others);
  out.back() = ',';
  return out + element + "]";
}
std::string slots_of(const std::string& lane, const std::string& slots) {
  return "{\"" + lane + "\":" + slots + "}";
}

const Lie kHeaders[] = {
    contradiction("version_2", "kvfold_format", "2", {"cache format version 2: expected 1"}),
    contradiction("version_0", "kvfold_format", "0", {"cache format version 0: expected 1"}),
    metadata_lie("version_a_word", "kvfold_format", "one", {"found 'one'"}),
    metadata_lie("version_a_fraction", "kvfold_format", "1.0", {"found '1.0'"}),
    metadata_lie("version_huge", "kvfold_format", "18446744073709551616", {"expected an integer"}),
    {"no_version", [](Parts& p) { p.metadata.erase("kvfold_format"); }, {"no metadata 'kvfold_format'"}},
    {"no_checksum", [](Parts& p) { p.metadata.erase("checksum"); }, {"'checksum' is missing"}},
    {"no_fingerprint", [](Parts& p) { p.metadata.erase("model_fingerprint"); }, {"'model_fingerprint'"}},
    {"no_dtype", [](Parts& p) { p.metadata.erase("dtype"); }, {"'dtype' is missing"}},
    {"no_slots", [](Parts& p) { p.metadata.erase("slots"); }, {"'slots' is missing"}},
    {"no_checksums", [](Parts& p) { p.metadata.erase("checksums"); }, {"'checksums' is missing"}},
    metadata_lie("no_layers", "layers", "0", {"found '0'", "[1, "}),
    contradiction("another_layer", "layers", "3", {"3 layers x 2 KV heads x 48", "2 x 2 x 48"}),
    metadata_lie("huge_layers", "layers", "2147483647", {"found '2147483647'"}),
    metadata_lie("negative_heads", "kv_heads", "-2", {"found '-2'"}),
    contradiction("another_head_dim", "head_dim", "64", {"2 layers x 2 KV heads x 64", "2 x 2 x 48"}),
    metadata_lie("head_dim_2_64", "head_dim", "18446744073709551664", {"expected an integer"}),
    metadata_lie("rotated_keys", "keys_rotated", "true", {"found 'true'", "before RoPE"}),
    contradiction("dtype_unknown", "dtype", "q4", {"found pages of type q4, expected f16"}),
};

const Lie kRows[] = {
    contradiction("rows_huge", "rows", "1073741823", {"'tokens'", "found 70", "1073741823"}),
    metadata_lie("rows_2_31", "rows", "2147483648", {"found '2147483648'"}),
    metadata_lie("rows_2_64", "rows", "18446744073709551615", {"found '18446744073709551615'"}),
    metadata_lie("rows_negative", "rows", "-1", {"found '-1'"}),
    metadata_lie("rows_not_json", "rows", "70 rows", {"found '70 rows'", "expected JSON"}),
    contradiction("one_row_fewer", "rows", "69", {"'tokens'", "found 70 elements, expected 69"}),
    metadata_lie("tokens_an_object", "tokens", "{}", {"expected a list of integers"}),
    metadata_lie("one_token_fewer", "tokens", list_of(69, "1"), {"found 69 elements, expected 70"}),
    metadata_lie("token_negative", "tokens", seventy("-1"), {"element 69: found '-1'"}),
    metadata_lie("token_2_31", "tokens", seventy("2147483648"), {"element 69: found '2147483648'"}),
    metadata_lie("token_a_fraction", "tokens", seventy("1.5"), {"element 69: found '1.5'"}),
    metadata_lie("token_a_list", "tokens", seventy("[1]"), {"element 69: found '[1]'"}),
    metadata_lie("token_infinite", "tokens", seventy("1e999"), {"expected JSON"}),
    metadata_lie("rows_and_more", "rows", std::string("70\0x", 4), {"found '70?x'", "null byte at offset 2"}),
    metadata_lie("slots_twice", "slots", R"({"0.0": [1], "0.0": [2]})", {"key '0.0' stands twice"}),
    metadata_lie("tokens_deep", "tokens", std::string(1 << 17, '['), {"expected JSON"}),
    metadata_lie("one_position_more", "positions", list_of(71, "1"), {"found 71 elements, expected 70"}),
    metadata_lie("position_too_high", "positions", seventy("1073741825"), {"element 69: found '1073741825'"}),
    metadata_lie("position_too_low", "positions", seventy("-1073741825"), {"element 69"}),
    metadata_lie("position_2_32", "positions", seventy("4294967296"), {"element 69"}),
    metadata_lie("next_position_high", "next_position", "1073741825", {"found '1073741825'"}),
    metadata_lie("next_position_text", "next_position", "\"1\"", {"expected an integer"}),
    metadata_lie("sources_empty", "sources", "[]", {"expected a list of names"}),
    metadata_lie("sources_numbers", "sources", "[1]", {"expected a list of names"}),
    metadata_lie("sources_text", "sources", "\"fed\"", {"expected a list of names"}),
    metadata_lie("origins_text", "origins", "\"\"", {"expected a list"}),
    metadata_lie("one_origin_fewer", "origins", list_of(69, "[0,1,\"\"]"), {"found 69 elements"}),
    metadata_lie("origin_short", "origins", seventy("[0,1]", "[0,1,\"\"]"), {"element 69"}),
    metadata_lie("origin_source", "origins", seventy("[1,1,\"\"]", "[0,1,\"\"]"), {"element 69"}),
    metadata_lie("origin_negative", "origins", seventy("[-1,1,\"\"]", "[0,1,\"\"]"), {"element 69"}),
    metadata_lie("origin_row", "origins", seventy("[0,-1,\"\"]", "[0,1,\"\"]"), {"element 69"}),
    metadata_lie("origin_operations", "origins", seventy("[0,1,3]", "[0,1,\"\"]"), {"element 69"}),
};

const Lie kSlots[] = {
    metadata_lie("slots_a_list", "slots", "[]", {"expected an object"}),
    metadata_lie("slots_of_no_lane", "slots", slots_of("2.0", "[]"), {"a lane that the model lacks"}),
    metadata_lie("slots_of_a_lane_by_another_name", "slots", slots_of("1.00", "[]"), {"a lane that"}),
    metadata_lie("slots_a_number", "slots", slots_of("1.0", "3"), {"expected a list of integers"}),
    metadata_lie("slot_past_the_rows", "slots", slots_of("1.0", "[70]"), {"found '70'", "[0, 69]"}),
    metadata_lie("slot_negative", "slots", slots_of("1.0", "[-1]"), {"found '-1'"}),
    metadata_lie("slot_twice", "slots", slots_of("1.0", "[5,5]"), {"'1.0'", "slot 5 after 5"}),
    metadata_lie("slots_decrease", "slots", slots_of("1.0", "[5,4]"), {"'1.0'", "slot 4 after 5"}),
    contradiction("one_slot_fewer", "slots", slots_of("1.0", "[1,2]"),
                  {"tensor 'layers.1.heads.0.k': found F16 [32,48], expected F16 [2,48]"}),
    {"another_lane_is_ragged",
     [](Parts& p) { p.metadata["slots"].replace(2, 3, "0.0"); },
     {"tensor 'layers.0.heads.0.k' is missing"}},
    contradiction("no_lane_is_ragged", "slots", "{}", {"tensor 'layers.1.k' is missing"}),
};

const Lie kTensors[] = {
    {"tensor_missing", [](Parts& p) { p.tensors.erase("layers.0.v"); }, {"tensor 'layers.0.v' is missing"}},
    {"tensor_too_many",
     [](Parts& p) { p.tensors["layers.2.k"] = p.tensors["layers.0.k"]; },
     {"found 7 tensors, expected 6"}},
    {"tensor_of_another_dtype",
     [](Parts& p) { p.tensors["layers.0.v"].dtype = "BF16"; },
     {"tensor 'layers.0.v': found BF16 [2,70,48], expected F16 [2,70,48]"}},
    {"tensor_transposed",
     [](Parts& p) {
       p.tensors["layers.0.v"].shape = {70, 2, 48};
     },
     {"tensor 'layers.0.v': found F16 [70,2,48], expected F16 [2,70,48]"}},
    {"tensors_exchanged",
     [](Parts& p) { std::swap(p.tensors["layers.0.k"], p.tensors["layers.0.v"]); },
     {"tensor 'layers.0.k' is damaged"}},
    contradiction("checksums_a_list", "checksums", "[]", {"expected none"}),
    contradiction("checksums_lack_a_tensor", "checksums", "{}", {"tensor 'layers.0.k'", "expected none"}),
    contradiction("checksums_of_numbers", "checksums", "{\"layers.0.k\":1}", {"expected none"}),
};

const auto kLieName = [](const auto& param) { return std::string(param.param.name); };
INSTANTIATE_TEST_SUITE_P(Headers, LyingCacheFile, ::testing::ValuesIn(kHeaders), kLieName);
INSTANTIATE_TEST_SUITE_P(Rows, LyingCacheFile, ::testing::ValuesIn(kRows), kLieName);
INSTANTIATE_TEST_SUITE_P(Slots, LyingCacheFile, ::testing::ValuesIn(kSlots), kLieName);
INSTANTIATE_TEST_SUITE_P(Tensors, LyingCacheFile, ::testing::ValuesIn(kTensors), kLieName);

// What other tools rely on: names, shapes, and where a number lies.
TEST_F(CacheFile, HoldsRowsWhereTheFormatSays) {
  const KvCache cache = ragged(make_pool(CacheType::kF32));
  const std::string bytes = TemporaryFolder::read(save(cache));
  const SafetensorsFile file = parse(bytes);
  const auto number = [&](const std::string& name, size_t index) {
    float x = 0;
    std::memcpy(&x, file.tensors.at(name).bytes.data() + index * sizeof x, sizeof x);
    return std::bit_cast<uint32_t>(x);
  };
  std::vector<float> row(kShape.head_dim);
  for (const Part part : {Part::kKey, Part::kValue}) {
    const std::string k = part == Part::kKey ? "k" : "v";
    EXPECT_EQ(file.tensors.at("layers.0." + k).shape, (std::vector<int64_t>{2, 70, 48}));
    EXPECT_EQ(file.tensors.at("layers.1.heads.0." + k).shape, (std::vector<int64_t>{32, 48}));
    EXPECT_EQ(file.tensors.at("layers.1.heads.1." + k).shape, (std::vector<int64_t>{70, 48}));
    cache.load(part, 0, 1, 33, row.data());
    EXPECT_EQ(number("layers.0." + k, (1 * 70 + 33) * 48 + 5), std::bit_cast<uint32_t>(row[5]));
    cache.load(part, 1, 0, 41, row.data());  // slots 0-2, then 41-69
    EXPECT_EQ(number("layers.1.heads.0." + k, 3 * 48 + 47), std::bit_cast<uint32_t>(row[47]));
  }
  EXPECT_EQ(file.metadata.at("slots").substr(0, 20), R"({"1.0":[0,1,2,41,42,)");
  EXPECT_EQ(file.metadata.at("rope_base"), "10000");
}

TEST_F(CacheFile, HoldsIntegersAndScalesOfQ8) {
  const KvCache cache = fed(make_pool(CacheType::kQ8), 40);
  const std::string bytes = TemporaryFolder::read(save(cache));
  const SafetensorsFile file = parse(bytes);
  const SafetensorsTensor& integers = file.tensors.at("layers.1.v");
  const SafetensorsTensor& scales = file.tensors.at("layers.1.v_scales");
  EXPECT_EQ(integers.dtype, "I8");
  EXPECT_EQ(scales.dtype, "F32");
  EXPECT_EQ(scales.shape, (std::vector<int64_t>{2, 40, 2}));
  std::vector<float> row(kShape.head_dim);
  cache.load(Part::kValue, 1, 1, 35, row.data());
  for (const int d : {0, 31, 32, 47}) {
    float scale = 0;
    std::memcpy(&scale, scales.bytes.data() + ((40 + 35) * 2 + d / 32) * sizeof scale, sizeof scale);
    const float x = static_cast<float>(static_cast<int8_t>(integers.bytes[(40 + 35) * 48 + d])) * scale;
    EXPECT_EQ(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(row[d])) << d;
  }
}

TEST_F(CacheFile, NamesThatAreNotUtf8AreReplaced) {
  const KvCache cache = with_rows(fed(make_pool(CacheType::kF16), 2), [](Rows& rows) {
    rows.sources = {"fed", "a\xFF.safetensors"};
  });
  CacheModelInfo info = tiny_info();
  info.name = "t\x80ny";
  const std::string path = folder_.file("a");
  ASSERT_TRUE(save_cache(cache, info, path).ok());
  const KvCache loaded = must(load_cache(path, info, kShape, make_pool(CacheType::kF16)));
  EXPECT_EQ(loaded.rows().sources, (std::vector<std::string>{"fed", "a\uFFFD.safetensors"}));
}

// Pages that lie on a device are read and written page by page, to the same file.
TEST_F(CacheFile, PagesOnADeviceAreSavedAndLoaded) {
  for (const CacheType type : kTypes) {
    const std::string path = save(ragged(make_pool(type)));
    constexpr size_t kBytes = size_t{4} << 20;
    const Pool far =
        must(PagePool::create(type, kShape.head_dim, std::make_unique<FarMemory>(kBytes), kBytes));
    const KvCache loaded = must(load_cache(path, tiny_info(), kShape, far));
    far->flush();
    EXPECT_EQ(TemporaryFolder::read(save(loaded, "b.safetensors")), TemporaryFolder::read(path));
  }
}

// Of a device that is lost, zeros come back: no file is kept of them.
TEST_F(CacheFile, WhatALostDeviceHeldIsNotSaved) {
  class LostMemory final : public FarMemory {
   public:
    using FarMemory::FarMemory;
    Status status() const override { return lost ? Status::error("the device is lost") : Status(); }
    bool lost = false;
  };
  constexpr size_t kBytes = size_t{4} << 20;
  auto memory = std::make_unique<LostMemory>(kBytes);
  bool& lost = memory->lost;
  const Pool pool = must(PagePool::create(CacheType::kF16, kShape.head_dim, std::move(memory), kBytes));
  KvCache cache = fed(pool, 3);
  lost = true;
  EXPECT_EQ(save_cache(cache, tiny_info(), folder_.file("a")).message(), "the device is lost");
  EXPECT_EQ(export_cache(cache, tiny_info(), true, folder_.file("a")).message(), "the device is lost");
  EXPECT_EQ(folder_.entries(), 0U);
  EXPECT_EQ(cache.grow(std::vector<TokenId>(40)).message(), "the device is lost");
  EXPECT_EQ(cache.size(), 3);
}

// With one page too few there is an error, with enough there is the cache; never anything else between, and
// what the pool held before stays as it was.
TEST_F(CacheFile, ShortPoolIsAnErrorAndLeaksNothing) {
  const KvCache plain = fed(make_pool(CacheType::kF16), 70);
  KvCache alternating = plain.fork();
  // Every other row, and runs of 31 behind single rows: pages fill in the worst of ways.
  std::string gaps = "layers=0 heads=0 rows=1";
  for (int row = 3; row < 70; row += 2) gaps += fmt::format(",{}", row);
  alternating = must(erase(alternating, select(alternating, gaps)));
  KvCache longer = fed(make_pool(CacheType::kF16), 200);
  longer = must(erase(longer, select(longer, "heads=0 rows=1,33,35,67,69,101,103,135,137,169")));
  for (const KvCache& cache : {plain, alternating, ragged(make_pool(CacheType::kF16)), longer}) {
    const std::string path = save(cache);
    const Pool ample = make_pool(CacheType::kF16);
    const size_t needed = [&] {
      const KvCache loaded = must(load_cache(path, tiny_info(), kShape, ample));
      return ample->peak_pages();
    }();
    for (size_t pages = 8; pages <= 8 + needed + 2; ++pages) {
      const Pool pool = make_pool(CacheType::kF16, pages);
      const KvCache held = fed(pool, 20);  // 8 pages
      {
        const Result<KvCache> loaded = load_cache(path, tiny_info(), kShape, pool);
        ASSERT_EQ(loaded.ok(), pages >= 8 + needed) << pages << " pages";
        if (loaded.ok()) expect_same_cache(cache, *loaded);
        const std::string& message = loaded.status().message();
        EXPECT_TRUE(loaded.ok() || message.starts_with(path + ": cache pool exhausted")) << message;
      }
      ASSERT_EQ(pool->pages_held(), 8U);
    }
  }
}

TEST_F(CacheFile, SavingReplacesAFileWhole) {
  const KvCache first = fed(make_pool(CacheType::kF16), 70, 1);
  const KvCache second = fed(make_pool(CacheType::kF16), 3, 2);
  const std::string path = save(first);
  save(second);
  expect_same_cache(second, must(load_cache(path, tiny_info(), kShape, make_pool(CacheType::kF16))));
  EXPECT_EQ(folder_.entries(), 1U);
}

TEST_F(CacheFile, SavingWhereNothingCanBeWrittenIsAnError) {
  const KvCache cache = fed(make_pool(CacheType::kF16), 3);
  const auto expect_error = [&](const std::string& path) {
    const Status status = save_cache(cache, tiny_info(), path);
    ASSERT_FALSE(status.ok());
    EXPECT_TRUE(status.message().starts_with(path + ": cannot ")) << status.message();
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
  };
  expect_error(folder_.file("absent/a.safetensors"));
  expect_error(folder_.write("file", "x") + "/a.safetensors");
  EXPECT_EQ(folder_.entries(), 1U);
  // The path is a folder: found out when the written file is to be renamed.
  std::filesystem::create_directories(folder_.file("folder/inner"));
  expect_error(folder_.file("folder"));
  EXPECT_EQ(folder_.entries(), 2U);
}

TEST_F(CacheFile, FolderWithoutWritePermissionKeepsTheOldFile) {
  const std::string path = save(fed(make_pool(CacheType::kF16), 3, 1));
  const std::string old = TemporaryFolder::read(path);
  const std::string folder = std::filesystem::path(path).parent_path();
  std::filesystem::permissions(folder, std::filesystem::perms(0555));
  // Root may write anywhere, so it is another user for a moment.
  const bool root = geteuid() == 0;
  if (root && seteuid(65534) != 0) GTEST_SKIP() << "root cannot become another user here";
  const Status status = save_cache(fed(make_pool(CacheType::kF16), 5, 2), tiny_info(), path);
  ASSERT_TRUE(!root || seteuid(0) == 0);
  std::filesystem::permissions(folder, std::filesystem::perms(0755));
  ASSERT_FALSE(status.ok());
  EXPECT_TRUE(status.message().starts_with(path + ": cannot create: ")) << status.message();
  EXPECT_EQ(TemporaryFolder::read(path), old);
  EXPECT_EQ(folder_.entries(), 1U);
}

// As on a full disk: writing stops in the header, or in the data.
TEST_F(CacheFile, WriteThatFailsHalfwayKeepsTheOldFile) {
  const std::string path = save(fed(make_pool(CacheType::kF16), 3, 1));
  const std::string old = TemporaryFolder::read(path);
  rlimit unlimited{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {4, 100, 3000, 5000}) {
    const KvCache cache = fed(make_pool(CacheType::kF16), 60, 2);
    const rlimit limited{limit, unlimited.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limited), 0);
    const Status status = save_cache(cache, tiny_info(), path);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
    ASSERT_FALSE(status.ok());
    EXPECT_TRUE(status.message().starts_with(path + ": cannot write: ")) << status.message();
    EXPECT_EQ(TemporaryFolder::read(path), old);
    EXPECT_EQ(folder_.entries(), 1U);
  }
  std::signal(SIGXFSZ, handler);
}

// What could not be loaded again is not saved.
TEST_F(CacheFile, PositionsBeyondTheFormatAreNotSaved) {
  for (const int32_t position : {(1 << 30) + 1, -(1 << 30) - 1, INT32_MAX, INT32_MIN}) {
    KvCache next = fed(make_pool(CacheType::kF16), 3);
    next.set_next_position(position);
    const KvCache row =
        with_rows(fed(make_pool(CacheType::kF16), 3), [&](Rows& rows) { rows.positions[1] = position; });
    for (const KvCache& cache : {next, row}) {
      const std::string path = folder_.file("a.safetensors");
      const Status status = save_cache(cache, tiny_info(), path);
      ASSERT_FALSE(status.ok());
      EXPECT_TRUE(status.message().starts_with(path + ": ")) << status.message();
      EXPECT_NE(status.message().find(std::to_string(position)), std::string::npos) << status.message();
      EXPECT_EQ(folder_.entries(), 0U);
    }
  }
  for (const int32_t position : {1 << 30, -(1 << 30)}) {
    KvCache cache =
        with_rows(fed(make_pool(CacheType::kF16), 3), [&](Rows& rows) { rows.positions[1] = position; });
    cache.set_next_position(position);
    const std::string path = save(cache);
    expect_same_cache(cache, must(load_cache(path, tiny_info(), kShape, make_pool(CacheType::kF16))));
  }
}

}  // namespace
}  // namespace kvfold::testing
