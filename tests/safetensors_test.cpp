// The safetensors reader against files that are good, and files that are not: every bad one is refused with
// one line that names the file and the key or offset. And the writer against the reader.
#include "engine/safetensors.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <set>

#include "engine/random.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

const std::string kPath = "some/file.safetensors";

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string prefix(uint64_t length) {
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out;
}

// A file of a header and `data_bytes` bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  std::string out = prefix(header.size()) + header;
  for (size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
  return out;
}

// The bytes are parsed where they end at an allocation's end, so that AddressSanitizer sees a step too far.
Result<SafetensorsFile> parse(const std::string& file, std::vector<std::byte>& storage) {
  const std::span<const std::byte> bytes = bytes_of(file);
  storage = std::vector<std::byte>(bytes.begin(), bytes.end());
  return parse_safetensors(storage, kPath);
}

void expect_one_line(const std::string& message) {
  EXPECT_TRUE(message.starts_with(kPath + ": ")) << message;
  EXPECT_LT(message.size(), 400U) << message;
  for (const char c : message) ASSERT_TRUE(c >= ' ' && c < 127) << message;
}

struct Broken {
  const char* name;
  std::string file;
  std::vector<std::string> words;
};

class BrokenSafetensors : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenSafetensors, IsRefused) {
  std::vector<std::byte> storage;
  const Result<SafetensorsFile> file = parse(GetParam().file, storage);
  ASSERT_FALSE(file.ok());
  const std::string& message = file.status().message();
  expect_one_line(message);
  for (const std::string& word : GetParam().words)
    EXPECT_NE(message.find(word), std::string::npos) << message << "\nlacks: " << word;
}

std::string repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

// A header of one tensor 'a'.
std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

// Two tensors 'a' and 'b' of bytes.
std::string two(const std::string& shape_a, const std::string& offsets_a, const std::string& shape_b,
                const std::string& offsets_b) {
  return R"({"a":{"dtype":"U8","shape":)" + shape_a + R"(,"data_offsets":)" + offsets_a +
         R"(},"b":{"dtype":"U8","shape":)" + shape_b + R"(,"data_offsets":)" + offsets_b + "}}";
}

const std::string kGood = tensor("F32", "[2]", "[0,8]");

const Broken kPrefixes[] = {
    {"empty", "", {"found 0 bytes", "at least 8"}},
    {"seven_bytes", std::string(7, '\0'), {"found 7 bytes", "at least 8"}},
    {"no_header", prefix(0), {"header at offset 8", "'{'"}},
    {"length_over_the_file", prefix(kGood.size() + 9) + kGood + "01234567", {"offset 0", "at most 62"}},
    {"length_max", prefix(UINT64_MAX) + kGood, {"offset 0", "18446744073709551615"}},
    {"length_2_63", prefix(uint64_t{1} << 63) + kGood, {"offset 0", "9223372036854775808"}},
    {"length_wraps_to_the_file", prefix(UINT64_MAX - 7) + kGood, {"offset 0"}},
    {"begins_with_a_space", file_of(" " + kGood, 8), {"offset 8", "'{'"}},
    {"begins_with_a_byte_order_mark", file_of("\xEF\xBB\xBF" + kGood, 8), {"offset 8", "'{'"}},
    {"a_list", file_of("[]", 0), {"offset 8", "'{'"}},
};

const Broken kJson[] = {
    {"open_brace", file_of("{", 0), {"header is not JSON near offset 10"}},
    {"cut", file_of(kGood.substr(0, kGood.size() - 1), 8), {"header is not JSON"}},
    {"unquoted_key", file_of("{a:1}", 0), {"header is not JSON near offset 10"}},
    {"trailing_comma", file_of(R"({"__metadata__":{},})", 0), {"header is not JSON"}},
    {"comment", file_of("{}/* */", 0), {"header is not JSON"}},
    {"second_object", file_of("{}{}", 0), {"header is not JSON near offset 11"}},
    {"trailing_text", file_of(kGood + "x", 8), {"header is not JSON"}},
    {"trailing_null", file_of(kGood + '\0', 8), {"null byte at offset 62"}},
    {"null_in_a_name", file_of(std::string("{\"a\0b\":{}}", 10), 0), {"null byte at offset 11"}},
    {"stray_utf8_byte", file_of("{\"\x80\":{}}", 0), {"header is not JSON near offset 11"}},
    {"cut_utf8", file_of("{\"\xE2\x82\":{}}", 0), {"header is not JSON"}},
    {"overlong_utf8", file_of("{\"\xC0\xAF\":{}}", 0), {"header is not JSON"}},
    {"surrogate_utf8", file_of("{\"\xED\xA0\x80\":{}}", 0), {"header is not JSON"}},
    {"lone_surrogate_escape", file_of(R"({"\ud800":{}})", 0), {"header is not JSON"}},
    {"control_character_in_a_name", file_of("{\"a\nb\":{}}", 0), {"header is not JSON"}},
    {"deep_lists", file_of(R"({"a":)" + repeat("[", 1 << 20), 0), {"'a'", "found an array"}},
    {"deep_objects", file_of(repeat(R"({"a":)", 1 << 20), 0), {"'a'", "found key 'a'"}},
    {"deep_shape",
     file_of(R"({"a":{"shape":)" + repeat("[", 1 << 20), 0),
     {"'a'", "found an array", "expected integers"}},
    {"deep_metadata", file_of(R"({"__metadata__":{"k":)" + repeat("[", 1 << 20), 0), {"__metadata__", "'k'"}},
};

const std::string kBytes4 = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";
const Broken kKeys[] = {
    {"tensor_twice", file_of("{\"a\":{" + kBytes4 + "},\"a\":{" + kBytes4 + "}}", 4), {"'a' stands twice"}},
    {"tensor_twice_by_escape",
     file_of("{\"a\":{" + kBytes4 + "},\"\\u0061\":{" + kBytes4 + "}}", 4),
     {"'a' stands twice"}},
    {"metadata_twice",
     file_of(R"({"__metadata__":{},"__metadata__":{}})", 0),
     {"'__metadata__' stands twice"}},
    {"metadata_key_twice", file_of(R"({"__metadata__":{"k":"1","k":"1"}})", 0), {"'k' stands twice"}},
    {"dtype_twice", file_of(R"({"a":{"dtype":"U8",)" + kBytes4 + "}}", 4), {"'a'", "'dtype' stands twice"}},
    {"shape_twice", file_of(R"({"a":{"shape":[4],)" + kBytes4 + "}}", 4), {"'a'", "'shape' stands twice"}},
    {"offsets_twice",
     file_of(R"({"a":{"data_offsets":[0,4],)" + kBytes4 + "}}", 4),
     {"'a'", "'data_offsets' stands twice"}},
    {"unknown_key", file_of("{\"a\":{" + kBytes4 + R"(,"order":"C"}})", 4), {"'a'", "found key 'order'"}},
    {"no_dtype", file_of(R"({"a":{"shape":[4],"data_offsets":[0,4]}})", 4), {"'a'", "expected dtype"}},
    {"no_shape", file_of(R"({"a":{"dtype":"U8","data_offsets":[0,4]}})", 4), {"'a'", "expected dtype"}},
    {"no_offsets", file_of(R"({"a":{"dtype":"U8","shape":[4]}})", 4), {"'a'", "data_offsets"}},
    {"empty_tensor_entry", file_of(R"({"a":{}})", 0), {"'a'", "expected dtype, shape and data_offsets"}},
    {"name_is_made_printable",
     file_of(R"({"\n\u001b\u00e9)" + repeat("x", 500) + R"(":{}})", 0),
     {"'????xxx", "..."}},
};

const Broken kKinds[] = {
    {"tensor_a_number", file_of(R"({"a":1})", 0), {"'a'", "found the number 1", "expected an object"}},
    {"tensor_null", file_of(R"({"a":null})", 0), {"'a'", "found null", "expected an object"}},
    {"tensor_a_string", file_of(R"({"a":"U8"})", 0), {"'a'", "found a string"}},
    {"tensor_a_list", file_of(R"({"a":[]})", 0), {"'a'", "found an array"}},
    {"metadata_a_string", file_of(R"({"__metadata__":"x"})", 0), {"'__metadata__'", "expected an object"}},
    {"metadata_null", file_of(R"({"__metadata__":null})", 0), {"'__metadata__'", "found null"}},
    {"metadata_value_number", file_of(R"({"__metadata__":{"k":1}})", 0), {"'k'", "1", "expected a string"}},
    {"metadata_value_negative", file_of(R"({"__metadata__":{"k":-1}})", 0), {"'k'", "-1", "a string"}},
    {"metadata_value_fraction", file_of(R"({"__metadata__":{"k":0.5}})", 0), {"'k'", "0.5", "a string"}},
    {"metadata_value_boolean", file_of(R"({"__metadata__":{"k":true}})", 0), {"'k'", "a boolean"}},
    {"metadata_value_null", file_of(R"({"__metadata__":{"k":null}})", 0), {"'k'", "found null"}},
    {"metadata_value_object", file_of(R"({"__metadata__":{"k":{}}})", 0), {"'k'", "an object"}},
    {"dtype_a_number", file_of(R"({"a":{"dtype":1}})", 0), {"'a'", "the number 1", "expected a string"}},
    {"dtype_a_list", file_of(R"({"a":{"dtype":["U8"]}})", 0), {"'a'", "an array", "expected a string"}},
    {"shape_a_number", file_of(R"({"a":{"shape":4}})", 0), {"'a'", "the number 4", "expected an array"}},
    {"shape_an_object", file_of(R"({"a":{"shape":{}}})", 0), {"'a'", "an object", "expected an array"}},
    {"shape_of_strings", file_of(R"({"a":{"shape":["4"]}})", 0), {"'a'", "a string", "expected integers"}},
    {"shape_of_null", file_of(R"({"a":{"shape":[null]}})", 0), {"'a'", "null", "expected integers"}},
    {"offsets_a_string", file_of(R"({"a":{"data_offsets":"0"}})", 0), {"'a'", "expected an array"}},
    {"offsets_of_booleans", file_of(R"({"a":{"data_offsets":[true]}})", 0), {"'a'", "expected integers"}},
};

const Broken kNumbers[] = {
    {"dtype_unknown", file_of(tensor("F31", "[2]", "[0,8]"), 8), {"'a'", "unknown dtype 'F31'"}},
    {"dtype_lower_case", file_of(tensor("f32", "[2]", "[0,8]"), 8), {"'a'", "unknown dtype 'f32'"}},
    {"dtype_empty", file_of(tensor("", "[2]", "[0,8]"), 8), {"'a'", "unknown dtype ''"}},
    {"shape_negative", file_of(tensor("U8", "[-4]", "[0,4]"), 4), {"'a'", "-4", "expected integers from 0"}},
    {"shape_both_negative", file_of(tensor("U8", "[-2,-2]", "[0,4]"), 4), {"'a'", "-2"}},
    {"shape_minus_zero", file_of(tensor("U8", "[-0]", "[0,0]"), 0), {"'a'", "negative"}},
    {"shape_fraction", file_of(tensor("U8", "[4.0]", "[0,4]"), 4), {"'a'", "4.0", "expected integers"}},
    {"shape_exponent", file_of(tensor("U8", "[4e0]", "[0,4]"), 4), {"'a'", "4e0", "expected integers"}},
    {"shape_2_53_plus_1", file_of(tensor("U8", "[9007199254740993]", "[0,4]"), 4), {"9007199254740993"}},
    {"shape_2_63", file_of(tensor("U8", "[9223372036854775808]", "[0,4]"), 4), {"'a'", "overflow"}},
    {"shape_2_64_plus_4",
     file_of(tensor("U8", "[18446744073709551620]", "[0,4]"), 4),
     {"'a'", "18446744073709551620"}},
    {"shape_over_any_number", file_of(tensor("U8", "[1e999]", "[0,4]"), 4), {"header is not JSON"}},
    {"product_overflows",
     file_of(tensor("U8", "[4294967296,4294967296]", "[0,0]"), 0),
     {"'a'", "product overflows"}},
    {"product_wraps_to_the_size",
     file_of(tensor("U8", "[4294967296,4294967296,4]", "[0,4]"), 4),
     {"'a'", "product overflows"}},
    {"bytes_overflow", file_of(tensor("F32", "[4611686018427387904]", "[0,0]"), 0), {"'a'", "overflows"}},
    {"too_many_dimensions",
     file_of(tensor("U8", "[" + repeat("1,", 64) + "1]", "[0,1]"), 1),
     {"'a'", "shape", "more than 64"}},
    {"offset_negative", file_of(tensor("U8", "[4]", "[-1,3]"), 4), {"'a'", "-1", "expected integers"}},
    {"offset_fraction", file_of(tensor("U8", "[4]", "[0,4.5]"), 4), {"'a'", "4.5", "expected integers"}},
    {"offset_2_64", file_of(tensor("U8", "[4]", "[0,18446744073709551616]"), 4), {"'a'", "18446744073"}},
    {"offset_2_64_minus_1",
     file_of(tensor("U8", "[4]", "[18446744073709551615,3]"), 4),
     {"'a'", "[18446744073709551615, 3]"}},
    {"end_2_64_minus_1",
     file_of(tensor("U8", "[4]", "[0,18446744073709551615]"), 4),
     {"'a'", "[0, 18446744073709551615]", "[0, 4]"}},
    {"no_offset_numbers", file_of(tensor("U8", "[4]", "[]"), 4), {"'a'", "found 0 data_offsets"}},
    {"one_offset", file_of(tensor("U8", "[4]", "[0]"), 4), {"'a'", "found 1 data_offsets"}},
    {"three_offsets", file_of(tensor("U8", "[4]", "[0,4,4]"), 4), {"'a'", "data_offsets", "more than 2"}},
};

const Broken kRanges[] = {
    {"reversed", file_of(tensor("U8", "[4]", "[4,0]"), 4), {"'a'", "[4, 0]"}},
    {"past_the_end", file_of(tensor("U8", "[4]", "[1,5]"), 4), {"'a'", "[1, 5]", "[0, 4]"}},
    {"range_too_short", file_of(tensor("U8", "[4]", "[0,3]"), 3), {"'a'", "found 3 bytes", "expected 4"}},
    {"range_too_long", file_of(tensor("F16", "[4]", "[0,9]"), 9), {"'a'", "found 9 bytes", "expected 8"}},
    {"range_of_a_scalar", file_of(tensor("F32", "[]", "[0,0]"), 0), {"'a'", "found 0", "expected 4"}},
    {"range_of_an_empty_tensor", file_of(tensor("U8", "[0]", "[0,1]"), 1), {"'a'", "found 1", "expected 0"}},
    {"hole_at_the_start", file_of(tensor("U8", "[4]", "[1,5]"), 5), {"'a'", "begins at 1", "hole"}},
    {"hole_between", file_of(two("[4]", "[0,4]", "[4]", "[5,9]"), 9), {"'b'", "5, expected 4", "hole"}},
    {"overlap", file_of(two("[4]", "[0,4]", "[4]", "[3,7]"), 7), {"'b'", "3, expected 4", "overlap"}},
    {"same_range", file_of(two("[4]", "[0,4]", "[4]", "[0,4]"), 4), {"'b'", "overlap"}},
    {"range_within", file_of(two("[6]", "[0,6]", "[2]", "[2,4]"), 6), {"'b'", "overlap"}},
    {"empty_within", file_of(two("[6]", "[0,6]", "[0]", "[2,2]"), 6), {"'b'", "overlap"}},
    {"empty_past_a_hole", file_of(two("[4]", "[0,4]", "[0]", "[6,6]"), 6), {"'b'", "hole"}},
    {"bytes_after_the_end", file_of(kGood, 9), {"1 bytes behind the last tensor"}},
    {"bytes_without_tensors", file_of("{}", 3), {"3 bytes behind the last tensor"}},
};

const auto kName = [](const auto& param) { return std::string(param.param.name); };
INSTANTIATE_TEST_SUITE_P(Prefixes, BrokenSafetensors, ::testing::ValuesIn(kPrefixes), kName);
INSTANTIATE_TEST_SUITE_P(Json, BrokenSafetensors, ::testing::ValuesIn(kJson), kName);
INSTANTIATE_TEST_SUITE_P(Keys, BrokenSafetensors, ::testing::ValuesIn(kKeys), kName);
INSTANTIATE_TEST_SUITE_P(Kinds, BrokenSafetensors, ::testing::ValuesIn(kKinds), kName);
INSTANTIATE_TEST_SUITE_P(Numbers, BrokenSafetensors, ::testing::ValuesIn(kNumbers), kName);
INSTANTIATE_TEST_SUITE_P(Ranges, BrokenSafetensors, ::testing::ValuesIn(kRanges), kName);

// The limit is the format's, not the file's: a whole header that is too long is refused before it is read.
TEST(Safetensors, HeaderOver100MBIsRefused) {
  const std::string header = "{}" + std::string(100'000'000 - 1, ' ');
  std::vector<std::byte> storage;
  const Result<SafetensorsFile> file = parse(file_of(header, 0), storage);
  ASSERT_FALSE(file.ok());
  expect_one_line(file.status().message());
  EXPECT_NE(file.status().message().find("found 100000001, expected at most 100000000"), std::string::npos)
      << file.status().message();
  EXPECT_TRUE(parse(file_of(header.substr(0, 100'000'000), 0), storage).ok());
}

TEST(Safetensors, ReadsWhatTheFormatAllows) {
  std::vector<std::byte> storage;
  // No tensors; white space around; keys in any order; scalars; empty tensors at any border; tensors whose
  // order in the header is not that of the data; a name that is no ASCII.
  EXPECT_TRUE(parse(file_of("{}", 0), storage).ok());
  EXPECT_TRUE(parse(file_of("{ }\n\t ", 0), storage).ok());
  const Result<SafetensorsFile> file = parse(
      file_of(R"({"z":{"data_offsets":[5,9],"shape":[],"dtype":"F32"},)"
              R"("\u00e9":{"dtype":"U8","shape":[5,1],"data_offsets":[0,5]},)"
              R"("empty":{"dtype":"F64","shape":[3,0,18014398509481984],"data_offsets":[5,5]},)"
              R"("end":{"dtype":"F64","shape":[0],"data_offsets":[9,9]},"__metadata__":{"k":"v","":"\n"}}  )",
              9),
      storage);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->metadata, (std::map<std::string, std::string>{{"k", "v"}, {"", "\n"}}));
  ASSERT_EQ(file->tensors.size(), 4U);
  const SafetensorsTensor& scalar = file->tensors.at("z");
  EXPECT_EQ(scalar.dtype, "F32");
  EXPECT_TRUE(scalar.shape.empty());
  ASSERT_EQ(scalar.bytes.size(), 4U);
  EXPECT_EQ(scalar.bytes[0], std::byte{5});
  EXPECT_EQ(file->tensors.at("\u00e9").shape, (std::vector<int64_t>{5, 1}));
  EXPECT_EQ(file->tensors.at("empty").shape, (std::vector<int64_t>{3, 0, int64_t{1} << 54}));
  EXPECT_TRUE(file->tensors.at("end").bytes.empty());
}

// Written out by hand, so that a reader that is another's would read it too.
TEST(Safetensors, WritesTheBytesThatTheFormatSays) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const std::string data = "abcd";
  Result<AtomicFile> file = AtomicFile::create(path);
  ASSERT_TRUE(file.ok());
  const std::vector<SafetensorsEntry> entries = {{"x", "I16", {1, 2}, [&] { return bytes_of(data); }}};
  ASSERT_TRUE(write_safetensors(*file, {{"k", "\"v\""}}, entries).ok());
  ASSERT_TRUE(file->commit().ok());
  const std::string header =
      R"({"__metadata__":{"k":"\"v\""},"x":{"dtype":"I16","shape":[1,2],"data_offsets":[0,4]}})";
  const std::string written = TemporaryFolder::read(path);
  const size_t length = (header.size() + 7) / 8 * 8;  // padded with spaces, so that the data is aligned
  EXPECT_EQ(written, prefix(length) + header + std::string(length - header.size(), ' ') + data);
}

TEST(Safetensors, WriterReplacesWhatIsNotUtf8) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  Result<AtomicFile> file = AtomicFile::create(path);
  ASSERT_TRUE(file.ok());
  const std::vector<SafetensorsEntry> entries = {
      {"x\xFF", "U8", {0}, [] { return std::span<const std::byte>(); }}};
  ASSERT_TRUE(write_safetensors(*file, {{"k\xC0", "v\x80w"}}, entries).ok());
  ASSERT_TRUE(file->commit().ok());
  std::vector<std::byte> storage;
  const Result<SafetensorsFile> read = parse(TemporaryFolder::read(path), storage);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->metadata, (std::map<std::string, std::string>{{"k\uFFFD", "v\uFFFDw"}}));
  EXPECT_TRUE(read->tensors.contains("x\uFFFD"));
}

// A file that no reader takes is not written.
TEST(Safetensors, WriterRefusesAHeaderOver100MB) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  {
    Result<AtomicFile> file = AtomicFile::create(path);
    ASSERT_TRUE(file.ok());
    std::string long_value;
    long_value.resize(100'000'000, 'x');
    const Status status = write_safetensors(*file, {{"k", long_value}}, {});
    ASSERT_FALSE(status.ok());
    EXPECT_TRUE(status.message().starts_with(path + ": ")) << status.message();
    EXPECT_NE(status.message().find("at most 100000000"), std::string::npos) << status.message();
  }
  EXPECT_EQ(folder.entries(), 0U);
}

const std::vector<std::string> kDtypes = {"BOOL", "U8",  "I8",  "F8_E4M3", "F8_E5M2", "I16", "U16", "F16",
                                          "BF16", "I32", "U32", "F32",     "F64",     "I64", "U64"};

RC_GTEST_PROP(Safetensors, WhatIsWrittenIsReadBack, ()) {
  // Any code points but surrogates make the names; some of them are what JSON must escape.
  const auto text = rc::gen::map(rc::gen::container<std::vector<char>>(rc::gen::inRange<char>(0, 127)),
                                 [](const std::vector<char>& ascii) {
                                   std::string out;
                                   for (const char c : ascii) out += c == 'e' ? "\u00e9" : std::string(1, c);
                                   return out;
                                 });
  // A null byte is written as an escape and read back as one.
  const auto metadata = *rc::gen::container<std::map<std::string, std::string>>(text, text);
  const auto names = *rc::gen::container<std::set<std::string>>(text);
  std::vector<SafetensorsEntry> entries;
  std::vector<std::string> contents;
  contents.reserve(names.size());
  for (const std::string& name : names) {
    if (name == "__metadata__") continue;
    const std::string dtype = *rc::gen::elementOf(kDtypes);
    const auto shape = *rc::gen::resize(4, rc::gen::container<std::vector<int64_t>>(rc::gen::inRange(0, 5)));
    size_t size = static_cast<size_t>(safetensors_element_bytes(dtype));
    for (const int64_t n : shape) size *= static_cast<size_t>(n);
    contents.push_back(*rc::gen::container<std::string>(size, rc::gen::arbitrary<char>()));
    const std::string& content = contents.back();
    entries.push_back({name, dtype, shape, [&content] { return bytes_of(content); }});
  }
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  Result<AtomicFile> file = AtomicFile::create(path);
  RC_ASSERT(file.ok());
  RC_ASSERT(write_safetensors(*file, metadata, entries).ok());
  RC_ASSERT(file->commit().ok());

  std::vector<std::byte> storage;
  const std::string written = TemporaryFolder::read(path);
  uint64_t length = 0;
  std::memcpy(&length, written.data(), sizeof length);
  RC_ASSERT(length % 8 == 0U);
  const Result<SafetensorsFile> read = parse(written, storage);
  RC_ASSERT(read.status().message() == std::string());
  RC_ASSERT(read->metadata == metadata);
  RC_ASSERT(read->tensors.size() == entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const SafetensorsTensor& tensor = read->tensors.at(entries[i].name);
    RC_ASSERT(tensor.dtype == entries[i].dtype);
    RC_ASSERT(tensor.shape == entries[i].shape);
    RC_ASSERT(std::string(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()) ==
              contents[i]);
  }
}

// A small file with everything in it.
std::string whole_file() {
  return file_of(R"({"__metadata__":{"k":"v","l":"\u00e9\"1\""},)"
                 R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                 R"("b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]},)"
                 R"("c":{"dtype":"F16","shape":[0,4],"data_offsets":[11,11]}} )",
                 11);
}

TEST(Safetensors, TruncationAtEveryByteIsRefused) {
  const std::string whole = whole_file();
  std::vector<std::byte> storage;
  ASSERT_TRUE(parse(whole, storage).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const Result<SafetensorsFile> file = parse(whole.substr(0, size), storage);
    ASSERT_FALSE(file.ok()) << size;
    expect_one_line(file.status().message());
  }
}

// The header itself cut at every byte, in a file whose length says so.
TEST(Safetensors, HeaderCutAtEveryByteIsRefused) {
  const std::string whole = whole_file();
  const std::string header = whole.substr(8, whole.size() - 8 - 12);  // without the space behind it
  std::vector<std::byte> storage;
  ASSERT_TRUE(parse(file_of(header, 11), storage).ok());
  for (size_t size = 0; size < header.size(); ++size) {
    const Result<SafetensorsFile> file = parse(file_of(header.substr(0, size), 11), storage);
    ASSERT_FALSE(file.ok()) << size;
    expect_one_line(file.status().message());
  }
}

// Any byte may be anything: the file is refused with one line, or every tensor lies within it.
TEST(Safetensors, DamageNeverCrashes) {
  const std::string whole = whole_file();
  Random random(1);
  std::vector<std::byte> storage;
  int read = 0;
  const auto check = [&](const std::string& bytes) {
    const Result<SafetensorsFile> file = parse(bytes, storage);
    if (!file.ok()) return expect_one_line(file.status().message());
    ++read;
    size_t sum = 0;
    for (const auto& [name, tensor] : file->tensors) {
      ASSERT_GT(safetensors_element_bytes(tensor.dtype), 0);
      ASSERT_GE(tensor.bytes.data(), storage.data());
      ASSERT_LE(tensor.bytes.data() + tensor.bytes.size(), storage.data() + storage.size());
      sum += tensor.bytes.size();
    }
    ASSERT_LE(sum, bytes.size());
  };
  for (size_t at = 0; at < whole.size(); ++at)
    for (int value = 0; value < 256; ++value) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(value);
      check(bytes);
    }
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (uint64_t n = 2 + random.below(4); n > 0; --n) {
      const size_t at = random.below(bytes.size());
      const uint64_t kind = random.below(3);
      if (kind == 0) bytes.erase(at, 1);
      if (kind == 1) bytes.insert(at, 1, bytes[random.below(bytes.size())]);
      if (kind == 2) bytes[at] = static_cast<char>(random.below(256));
    }
    check(bytes);
  }
  // Damage of names, metadata and data shows to nobody here.
  EXPECT_GT(read, 1000);
}

}  // namespace
}  // namespace kvfold::testing
