// JSON files read strictly, and the one line that says which key of which file is wrong, and how.
#include "loaders/json.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

std::string refusal(const std::string& text) { return JsonObject::parse(text, "f.json").status().message(); }

TEST(Json, TextsThatAreRefused) {
  EXPECT_EQ(refusal(""), "f.json: not JSON near offset 1");
  EXPECT_EQ(refusal("{} {}"), "f.json: not JSON near offset 4");
  EXPECT_EQ(refusal(R"({"a": 1e999})"),
            "f.json: found a number beyond 1e308, expected numbers that a double holds");
  EXPECT_EQ(refusal(std::string("{}\0", 3)), "f.json: found a null byte at offset 2, expected JSON");
  EXPECT_EQ(refusal("[1]"), "f.json: found an array of 1, expected an object");
  EXPECT_EQ(refusal("null"), "f.json: found null, expected an object");
  EXPECT_EQ(refusal("true"), "f.json: found true, expected an object");
  EXPECT_EQ(refusal("-1.5"), "f.json: found the number -1.5, expected an object");
  EXPECT_EQ(refusal("\"\x7F\""), "f.json: found the string '?', expected an object");
  EXPECT_FALSE(JsonObject::open("/absent/f.json").ok());
}

// What may never end is not waited for.
TEST(Json, PipesAndDevicesAreRefused) {
  const TemporaryFolder folder;
  const std::string pipe = folder.file("f.json");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, std::string("/dev/zero")})
    EXPECT_EQ(JsonObject::open(path).status().message(),
              path + ": expected a regular file that is not empty, found something else");
}

// At any depth, also of the empty key; of two, the first is named.
TEST(Json, RepeatedKeysAreRefused) {
  EXPECT_EQ(refusal(R"({"a": 1, "b": 2, "a": 3})"), "f.json: key 'a' stands twice");
  EXPECT_EQ(refusal(R"({"": 1, "": 2})"), "f.json: key '(empty)' stands twice");
  EXPECT_EQ(refusal(R"({"a": [{"b": {"c": 1, "d": 1, "c": 1}}], "a": 1})"), "f.json: key 'c' stands twice");
  EXPECT_EQ(refusal(R"({"a": {"b": 1}, "c": {"b": 1}, "b": {"a": [{"b": 1}, {"b": 1}]}})"), "");
}

// Each level takes much memory for its one byte; none of the files goes that deep.
TEST(Json, DeepOnesAreRefused) {
  const auto nested = [](int levels) { return std::string(levels, '[') + std::string(levels, ']'); };
  EXPECT_EQ(refusal(nested(64)), "f.json: found an array of 1, expected an object");
  EXPECT_EQ(refusal(nested(65)), "f.json: found level 65 at offset 64, expected at most 64");
  EXPECT_EQ(refusal(std::string(1 << 20, '[')), "f.json: found level 65 at offset 64, expected at most 64");
  EXPECT_EQ(refusal("{\"" + std::string(100, '[') + "\\\"[\": 1}"), "") << "brackets in a string are text";
}

// Whatever stands in a file, a message is one short printable line.
TEST(Json, KeysAreShownPrintably) {
  const Result<JsonObject> made = JsonObject::parse(
      "{\"\\u001b\\n\": {\"\x7F\": 1}, \"" + std::string(1000, 'k') + "\": {\"a\": 1}}", "f.json");
  ASSERT_TRUE(made.ok()) << made.status().message();
  const Result<JsonObject> inner = made->object("\x1B\n");
  ASSERT_TRUE(inner.ok());
  EXPECT_EQ(inner->string("\x7F").status().message(),
            "f.json: key '??.?': found the number 1, expected a string");
  const Result<JsonObject> wide = made->object(std::string(1000, 'k'));
  ASSERT_TRUE(wide.ok());
  EXPECT_EQ(wide->string("a").status().message(),
            "f.json: key '" + std::string(80, 'k') + "....a': found the number 1, expected a string");
}

TEST(Json, ValuesByType) {
  const Result<JsonObject> made = JsonObject::parse(
      R"({"i": -5, "u": 9223372036854775807, "d": 1.5, "t": true, "s": "x", "a": [1], "o": {"i": "y"}, "n": null})",
      "f.json");
  ASSERT_TRUE(made.ok()) << made.status().message();
  const JsonObject& json = *made;
  EXPECT_EQ(*json.integer("i"), -5);
  EXPECT_EQ(*json.integer("u"), 9223372036854775807);
  EXPECT_EQ(*json.number("i"), -5);
  EXPECT_EQ(*json.number("d"), 1.5);
  EXPECT_TRUE(*json.boolean("t"));
  EXPECT_EQ(*json.string("s"), "x");
  EXPECT_EQ((*json.array("a"))->size(), 1U);
  EXPECT_EQ(*json.object("o")->string("i"), "y");
  EXPECT_TRUE(*json.flag("t", false) && *json.flag("absent", true) && *json.flag("n", true));
  EXPECT_TRUE(json.has("i"));
  EXPECT_FALSE(json.has("n") || json.has("absent"));
}

TEST(Json, ValuesOfOtherTypes) {
  const Result<JsonObject> made = JsonObject::parse(
      R"({"i": 5, "u": 9223372036854775808, "t": true, "s": "x", "a": [], "o": {"i": []}, "n": null})",
      "f.json");
  ASSERT_TRUE(made.ok()) << made.status().message();
  const JsonObject& json = *made;
  const auto message = [](const auto& result) { return result.status().message(); };
  for (const std::string key : {"absent", "n"}) {
    const std::string none = "f.json: key '" + key + "': found none, expected ";
    EXPECT_EQ(message(json.integer(key)), none + "an integer");
    EXPECT_EQ(message(json.number(key)), none + "a number");
    EXPECT_EQ(message(json.boolean(key)), none + "true or false");
    EXPECT_EQ(message(json.string(key)), none + "a string");
    EXPECT_EQ(message(json.array(key)), none + "an array");
    EXPECT_EQ(message(json.object(key)), none + "an object");
  }
  EXPECT_EQ(message(json.integer("u")),
            "f.json: key 'u': found the number 9223372036854775808, expected an integer");
  EXPECT_EQ(message(json.integer("s")), "f.json: key 's': found the string 'x', expected an integer");
  EXPECT_EQ(message(json.number("t")), "f.json: key 't': found true, expected a number");
  EXPECT_EQ(message(json.boolean("i")), "f.json: key 'i': found the number 5, expected true or false");
  EXPECT_EQ(message(json.flag("i", true)), "f.json: key 'i': found the number 5, expected true or false");
  EXPECT_EQ(message(json.string("o")), "f.json: key 'o': found an object, expected a string");
  EXPECT_EQ(message(json.array("o")), "f.json: key 'o': found an object, expected an array");
  EXPECT_EQ(message(json.object("a")), "f.json: key 'a': found an array of 0, expected an object");
  EXPECT_EQ(message(json.object("o")->integer("i")),
            "f.json: key 'o.i': found an array of 0, expected an integer");
}

}  // namespace
}  // namespace kvfold::testing
