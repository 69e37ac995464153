#include "kernels/cuda/packed.h"

#include <cstring>

namespace kvfold::cuda {
namespace {

constexpr int kSuperGroups = 8;

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class Visit>
void visit_format(WeightType type, Visit visit) {
  switch (type) {
    case WeightType::kF32:
      return visit(F32{});
    case WeightType::kF16:
      return visit(F16{});
    case WeightType::kBF16:
      return visit(BF16{});
    default:
      return visit_quantized_format(type, visit);
  }
}

// One row's part of a group in each plane.
struct Place {
  uint8_t* integers;
  int half_step;  // from the first 16 bytes of integers to the second
  uint8_t* high;
  uint8_t* scales;
  uint8_t* supers;
};

template <class Format>
Place place_of(std::byte* out, const PackedLayout& layout, int64_t groups, int64_t row, int64_t group) {
  using P = Planes<Format>;
  const int64_t tile = row / kTileRows;
  const int64_t r = row % kTileRows;
  const int64_t at = (tile * groups + group) * kTileRows;
  const int64_t super =
      (tile * ((groups + kSuperGroups - 1) / kSuperGroups) + group / kSuperGroups) * kTileRows + r;
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  return {bytes + at * P::kIntegers + r * 16, 16 * kTileRows, bytes + layout.high + (at + r) * P::kHigh,
          bytes + layout.scales + (at + r) * P::kScales, bytes + layout.supers + super * P::kSupers};
}

void put_half(float value, uint8_t* out) {
  const uint16_t bits = f32_to_f16(value);  // exact: it came from an f16
  std::memcpy(out, &bits, sizeof bits);
}

template <class Format>
void put_integers(const QuantGroup& w, const Place& to) {
  using P = Planes<Format>;
  for (int column = 0; column < kGroup; ++column) {
    const auto u = static_cast<uint8_t>(w.q[column] + P::kOffset);
    const int i = column / 4;
    const int b = column % 4;
    if constexpr (P::kIntegers == 32) {
      to.integers[column / 16 * to.half_step + column % 16] = u;
    } else {
      to.integers[column % 16] |= static_cast<uint8_t>((u & 15) << (column < 16 ? 0 : 4));
      if constexpr (P::kHigh == 4) to.high[b] |= static_cast<uint8_t>((u >> 4) << i);
      if constexpr (P::kHigh == 8)
        to.high[4 * (i / 4) + b] |= static_cast<uint8_t>((u >> 4) << (2 * (i % 4)));
    }
  }
}

template <class Format>
void put_scales(const typename Format::Block& block, int index, const QuantGroup& w, const Place& to) {
  if constexpr (Format::kHasSubScales) {
    for (int half = 0; half < 2; ++half) to.scales[half] = static_cast<uint8_t>(w.sub[half]);
    std::memcpy(to.supers, &block.d, 2);
  } else if constexpr (Planes<Format>::kSupers == 4) {
    const KScale s = unpack_k_scale(block.scales, index);
    to.scales[0] = static_cast<uint8_t>(s.scale);
    to.scales[1] = static_cast<uint8_t>(s.min);
    std::memcpy(to.supers, &block.d, 2);
    std::memcpy(to.supers + 2, &block.dmin, 2);
  } else {
    put_half(w.scale, to.scales);
    if constexpr (Format::kHasMin) put_half(w.min, to.scales + 2);
  }
}

template <class Format>
void pack_row(const MatrixView& weight, const PackedLayout& layout, int64_t row, std::byte* out) {
  constexpr int kGroups = Format::kBlockElements / kGroup;
  const int64_t groups = weight.columns / kGroup;
  const auto* blocks = reinterpret_cast<const typename Format::Block*>(weight.data) +
                       row * (weight.columns / Format::kBlockElements);
  for (int64_t g = 0; g < groups; ++g) {
    const typename Format::Block& block = blocks[g / kGroups];
    QuantGroup w;
    Format::group(block, static_cast<int>(g % kGroups), w);
    const Place to = place_of<Format>(out, layout, groups, row, g);
    put_integers<Format>(w, to);
    put_scales<Format>(block, static_cast<int>(g % kGroups), w, to);
  }
}

// Floats: [tile][group][pieces of 16 bytes of all lanes]; a piece is 4 floats, or 8 halves (both column
// halves).
template <class Format>
void pack_float_row(const MatrixView& weight, int64_t row, std::byte* out) {
  using Element = typename Format::Element;
  const int64_t groups = (weight.columns + kGroup - 1) / kGroup;
  const auto* from = reinterpret_cast<const Element*>(weight.data) + row * weight.columns;
  auto* tile = reinterpret_cast<Element*>(out) + row / kTileRows * groups * kTileRows * kGroup;
  const int64_t r = row % kTileRows;
  for (int64_t column = 0; column < weight.columns; ++column) {
    const int64_t group = column / kGroup;
    const int64_t half = column % kGroup / 16;
    const int64_t quarter = column % 16 / 4;
    const int64_t lane = r * 4 + quarter;
    const int64_t at =
        sizeof(Element) == 4 ? (half * 32 + lane) * 4 + column % 4 : lane * 8 + half * 4 + column % 4;
    std::memcpy(&tile[group * kTileRows * kGroup + at], &from[column], sizeof(Element));
  }
}

}  // namespace

PackedLayout packed_layout(WeightType type, int64_t rows, int64_t columns) {
  PackedLayout layout{};
  visit_format(type, [&](auto format) {
    using P = Planes<decltype(format)>;
    const int64_t groups = (columns + kGroup - 1) / kGroup;
    const int64_t units = packed_tiles(rows) * kTileRows * groups;
    const int64_t supers = packed_tiles(rows) * kTileRows * ((groups + kSuperGroups - 1) / kSuperGroups);
    layout.high = aligned(static_cast<size_t>(units * P::kIntegers));
    layout.scales = layout.high + aligned(static_cast<size_t>(units * P::kHigh));
    layout.supers = layout.scales + aligned(static_cast<size_t>(units * P::kScales));
    layout.bytes = layout.supers + aligned(static_cast<size_t>(supers * P::kSupers));
  });
  return layout;
}

PackedView packed_view(WeightType type, int64_t rows, int64_t columns, const std::byte* memory) {
  const PackedLayout layout = packed_layout(type, rows, columns);
  const auto* bytes = reinterpret_cast<const uint8_t*>(memory);
  return {type,
          static_cast<int>(rows),
          static_cast<int>(columns),
          static_cast<int>((columns + kGroup - 1) / kGroup),
          bytes,
          bytes + layout.high,
          bytes + layout.scales,
          bytes + layout.supers};
}

void pack(const MatrixView& weight, int64_t begin, int64_t end, std::byte* out) {
  const PackedLayout layout = packed_layout(weight.type, weight.rows, weight.columns);
  const int64_t last = end * kTileRows < weight.rows ? end * kTileRows : weight.rows;
  visit_format(weight.type, [&](auto format) {
    using Format = decltype(format);
    for (int64_t row = begin * kTileRows; row < last; ++row) {
      if constexpr (requires { typename Format::Element; }) {
        pack_float_row<Format>(weight, row, out);
      } else {
        pack_row<Format>(weight, layout, row, out);
      }
    }
  });
}

}  // namespace kvfold::cuda
