// Weight formats: half precision against the definition, and every format's way there and back.
#include "kernels/formats/formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/random.h"
#include "kernels/half.h"

namespace kvfold {
namespace {

// binary16 by its definition.
double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31;
  const int mantissa = h & 1023;
  const double sign = (h & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Half, EveryF16DecodesExactlyAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    const double expected = half_value(h);
    const float x = f16_to_f32(h);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(x));
      EXPECT_EQ(f32_to_f16(x), h | 0x0200) << bits;  // quiet
    } else {
      ASSERT_EQ(static_cast<double>(x), expected) << bits;
      ASSERT_EQ(f32_to_f16(x), h) << bits;
    }
    const float b = bf16_to_f32(h);
    if (!std::isnan(b)) {
      ASSERT_EQ(f32_to_bf16(b), h);
    }
  }
}

TEST(Half, F32RoundsToTheNearestEven) {
  Random random(3);
  for (int i = 0; i < 2000000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(random.next()));
    if (std::isnan(x)) continue;
    const uint16_t h = f32_to_f16(x);
    const double value = half_value(h);
    if (std::isinf(value)) {
      ASSERT_GE(std::fabs(x), 65520.0F);
      continue;
    }
    for (const int step : {-1, 1}) {
      const double neighbour = half_value(static_cast<uint16_t>(h + step));
      if (std::isnan(neighbour) || std::signbit(neighbour) != std::signbit(value)) continue;
      const double here = std::fabs(value - x);
      const double there =
          std::isinf(neighbour) ? std::fabs(65536.0 - std::fabs(x)) : std::fabs(neighbour - x);
      ASSERT_LE(here, there) << x;
      if (here == there) {
        ASSERT_EQ(h & 1, 0) << x;
      }
    }
  }
}

TEST(Half, F32RoundsToTheNearestBf16) {
  EXPECT_EQ(f32_to_bf16(1.0F), 0x3F80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F808000U)), 0x3F80);  // a tie goes to even
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F818000U)), 0x3F82);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F808001U)), 0x3F81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::infinity()), 0x7F80);
}

std::vector<float> gaussian(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(count);
  for (float& v : x) v = static_cast<float>(random.gaussian());
  return x;
}

// Root mean square error of encoding N(0, 1), and what it may be: observed, and a little more.
TEST(Formats, EncodingLosesNoMoreThanItsBits) {
  const std::vector<std::pair<const char*, double>> bounds = {
      {"f32", 0},      {"f16", 2.2e-4},  {"bf16", 1.8e-3},  // observed 2.07e-4, 1.68e-3
      {"q4_0", 0.090}, {"q4_1", 0.082},  {"q5_0", 0.045},   // observed 0.0860, 0.0787, 0.0429
      {"q5_1", 0.040}, {"q8_0", 0.0057}, {"q4_k", 0.077},   // observed 0.0381, 0.0054, 0.0735
      {"q5_k", 0.039}, {"q6_k", 0.020},                     // observed 0.0367, 0.0188
  };
  ASSERT_EQ(bounds.size(), weight_formats().size());
  for (const auto& [name, bound] : bounds) {
    const FormatInfo* format = find_format(name);
    ASSERT_NE(format, nullptr) << name;
    EXPECT_EQ(find_format(static_cast<uint32_t>(format->type)), format);
    const std::vector<float> x = gaussian(256 * 64, 5);
    std::vector<std::byte> blocks(x.size() / format->block_elements * format->block_bytes);
    std::vector<float> y(x.size());
    format->encode(x.data(), blocks.data(), x.size());
    format->decode(blocks.data(), y.data(), y.size());
    double error = 0;
    for (size_t i = 0; i < x.size(); ++i)
      error += (x[i] - y[i]) * (x[i] - y[i]) / static_cast<double>(x.size());
    EXPECT_LE(std::sqrt(error), bound) << name;
    if (bound > 0) {
      EXPECT_GT(std::sqrt(error), bound / 3) << name << ": suspiciously good";
    }
  }
}

TEST(Formats, ZerosStayZeros) {
  for (const FormatInfo& format : weight_formats()) {
    const std::vector<float> x(256, 0.0F);
    std::vector<std::byte> blocks(256 / format.block_elements * format.block_bytes);
    std::vector<float> y(256, 1.0F);
    format.encode(x.data(), blocks.data(), x.size());
    format.decode(blocks.data(), y.data(), y.size());
    EXPECT_EQ(x, y) << format.name;
  }
}

int hex_value(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

// Blocks of random bytes, decoded by PyPI gguf (tests/oracle/make_formats.py).
TEST(Formats, DecodeAsTheReferenceDoes) {
  std::ifstream file(KVFOLD_SOURCE_DIR "/tests/data/formats.json");
  ASSERT_TRUE(file.good());
  const nlohmann::json fixture = nlohmann::json::parse(file);
  int formats = 0;
  for (const auto& [name, sample] : fixture.items()) {
    const FormatInfo* format = find_format(name.c_str());
    ASSERT_NE(format, nullptr) << name;
    const auto hex = sample.at("bytes").get<std::string>();
    std::vector<std::byte> bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes.push_back(static_cast<std::byte>(16 * hex_value(hex[i]) + hex_value(hex[i + 1])));
    const auto expected = sample.at("values").get<std::vector<float>>();
    ASSERT_EQ(bytes.size() / format->block_bytes * format->block_elements, expected.size()) << name;
    std::vector<float> values(expected.size());
    format->decode(bytes.data(), values.data(), values.size());
    // Products and sums of the reference round once each, as ours do: equal to the bit.
    EXPECT_EQ(values, expected) << name;
    ++formats;
  }
  EXPECT_EQ(formats, 10);  // every format but f32, which has nothing to decode
}

}  // namespace
}  // namespace kvfold
