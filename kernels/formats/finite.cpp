#include "kernels/formats/finite.h"

#include <bit>

#include "kernels/formats/all.h"

namespace kvfold {
namespace {

// All bits of the exponent set is infinity or NaN. No loop here ends early, so that the compiler can
// vectorise.
bool is_finite_f16(uint16_t x) { return (x & 0x7C00) != 0x7C00; }

template <class Format>
bool finite_blocks(const std::byte* blocks, size_t count) {
  const auto* block = reinterpret_cast<const typename Format::Block*>(blocks);
  bool all = true;
  for (size_t i = 0; i < count / Format::kBlockElements; ++i) {
    all &= is_finite_f16(block[i].d);
    if constexpr (requires { block[i].m; }) all &= is_finite_f16(block[i].m);
    if constexpr (requires { block[i].dmin; }) all &= is_finite_f16(block[i].dmin);
  }
  return all;
}

template <class Format>
bool finite_floats(const std::byte* blocks, size_t count) {
  const auto* in = reinterpret_cast<const typename Format::Element*>(blocks);
  bool all = true;
  for (size_t i = 0; i < count; ++i)
    all &= (std::bit_cast<uint32_t>(Format::decode(in[i])) & 0x7F800000) != 0x7F800000;
  return all;
}

}  // namespace

bool is_finite(WeightType type, const std::byte* blocks, size_t count) {
  if (type == WeightType::kF32) return finite_floats<F32>(blocks, count);
  if (type == WeightType::kF16) return finite_floats<F16>(blocks, count);
  if (type == WeightType::kBF16) return finite_floats<BF16>(blocks, count);
  bool all = true;
  visit_quantized_format(type, [&]<class Format>(Format) { all = finite_blocks<Format>(blocks, count); });
  return all;
}

}  // namespace kvfold
