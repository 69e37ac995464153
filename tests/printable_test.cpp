#include "engine/printable.h"

#include <gtest/gtest.h>

namespace kvfold {
namespace {

TEST(Printable, IsShortAscii) {
  EXPECT_EQ(printable("a ~"), "a ~");
  EXPECT_EQ(printable(std::string_view("\0\x1B\x7F\n\xC3\xA9", 6)), "??????");
  EXPECT_EQ(printable(std::string(80, 'x')), std::string(80, 'x'));
  EXPECT_EQ(printable(std::string(81, 'x')), std::string(80, 'x') + "...");
}

TEST(OneLine, KeepsLettersAndNothingThatATerminalObeys) {
  EXPECT_EQ(one_line("\xC3\xA9t\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC"),
            "\xC3\xA9t\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC");
  EXPECT_EQ(one_line("a\nb\tc\r"), "a\\nb\\tc?");
  EXPECT_EQ(one_line(std::string_view("\0\x1B[2J\x07\x7F", 7)), "??[2J??");
  EXPECT_EQ(one_line("\xC2\x9B"
                     "31m"),
            "?31m")
      << "the one-byte form of escape and bracket, in UTF-8";
  EXPECT_EQ(one_line("\x9B"
                     "31m"),
            "?31m")
      << "and as it is";
  EXPECT_EQ(one_line("\xE2\x80\xAE\xE2\x80\xA8"), "??") << "writing from right to left, a line separator";
  EXPECT_EQ(one_line("\xC3"), "?");
  EXPECT_EQ(one_line("\xED\xA0\x80"), "???") << "half of a pair";
}

TEST(OneLine, LeavesOutTheMiddleOfWhatIsLong) {
  EXPECT_EQ(one_line("0123456789", 10), "0123456789");
  EXPECT_EQ(one_line("0123456789", 8), "0123...6789");
  EXPECT_EQ(one_line("0\xC3\xA9"
                     "23456",
                     4),
            "0?...56")
      << "a letter that is cut is no letter";
}

}  // namespace
}  // namespace kvfold
