#include "kernels/formats/formats.h"

#include <array>
#include <string_view>

#include "kernels/formats/all.h"

namespace kvfold {
namespace {

template <class Format>
void group_of(const std::byte* block, int index, QuantGroup& out) {
  Format::group(*reinterpret_cast<const typename Format::Block*>(block), index, out);
}

template <class Format>
void decode_blocks(const std::byte* blocks, float* out, size_t count) {
  const auto* block = reinterpret_cast<const typename Format::Block*>(blocks);
  for (size_t i = 0; i < count; i += Format::kBlockElements, ++block)
    for (int g = 0; g < Format::kBlockElements / kGroup; ++g) {
      QuantGroup w;
      Format::group(*block, g, w);
      for (int j = 0; j < kGroup; ++j) {
        const float scaled = w.scale * static_cast<float>(w.sub[j / 16] * w.q[j]);
        out[i + g * kGroup + j] = Format::kHasMin ? scaled + w.min : scaled;
      }
    }
}

template <class Format>
void encode_blocks(const float* in, std::byte* blocks, size_t count) {
  auto* block = reinterpret_cast<typename Format::Block*>(blocks);
  for (size_t i = 0; i < count; i += Format::kBlockElements) Format::encode(in + i, *block++);
}

template <class Format>
void decode_floats(const std::byte* blocks, float* out, size_t count) {
  const auto* in = reinterpret_cast<const typename Format::Element*>(blocks);
  for (size_t i = 0; i < count; ++i) out[i] = Format::decode(in[i]);
}

template <class Format>
void encode_floats(const float* in, std::byte* blocks, size_t count) {
  auto* out = reinterpret_cast<typename Format::Element*>(blocks);
  for (size_t i = 0; i < count; ++i) out[i] = Format::encode(in[i]);
}

template <class Format>
constexpr FormatInfo quantized_row() {
  return {Format::kType,   Format::kName,    Format::kBlockElements, sizeof(typename Format::Block),
          Format::kHasMin, group_of<Format>, decode_blocks<Format>,  encode_blocks<Format>};
}

template <class Format>
constexpr FormatInfo float_row() {
  return {Format::kType,         Format::kName,        1, sizeof(typename Format::Element), false, nullptr,
          decode_floats<Format>, encode_floats<Format>};
}

constexpr std::array kFormats = {
    float_row<F32>(),      float_row<F16>(),      float_row<BF16>(),     quantized_row<Q4_0>(),
    quantized_row<Q4_1>(), quantized_row<Q5_0>(), quantized_row<Q5_1>(), quantized_row<Q8_0>(),
    quantized_row<Q4_K>(), quantized_row<Q5_K>(), quantized_row<Q6_K>(),
};

}  // namespace

std::span<const FormatInfo> weight_formats() { return kFormats; }

const FormatInfo* find_format(uint32_t gguf_id) {
  for (const FormatInfo& format : kFormats)
    if (static_cast<uint32_t>(format.type) == gguf_id) return &format;
  return nullptr;
}

const FormatInfo* find_format(const char* name) {
  for (const FormatInfo& format : kFormats)
    if (std::string_view(format.name) == name) return &format;
  return nullptr;
}

const FormatInfo& format_info(WeightType type) { return *find_format(static_cast<uint32_t>(type)); }

}  // namespace kvfold
