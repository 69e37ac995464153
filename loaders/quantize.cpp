#include "loaders/quantize.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "engine/printable.h"
#include "kernels/formats/finite.h"
#include "kernels/formats/formats.h"
#include "loaders/fingerprint.h"

namespace kvfold {
namespace {

constexpr std::string_view kKnown = "q4_0, q4_1, q8_0, q4_k or none";

// Types by name, and the general.file_type of files that consist of them.
struct Kind {
  const char* name;
  WeightType type;
  uint32_t file_type;
};
constexpr std::array kKinds = {
    Kind{"q4_0", WeightType::kQ4_0, 2},
    Kind{"q4_1", WeightType::kQ4_1, 3},
    Kind{"q8_0", WeightType::kQ8_0, 7},
    Kind{"q4_k", WeightType::kQ4_K, 14},
};

int64_t row_bytes(const MatrixView& view) {
  const FormatInfo& format = format_info(view.type);
  return view.columns / format.block_elements * format.block_bytes;
}

}  // namespace

Result<Quantization> Quantization::parse(const std::string& text) {
  if (text.empty() || text == "none") return Quantization{};
  for (const Kind& kind : kKinds)
    if (text == kind.name) return Quantization{false, kind.type};
  return Status::error(fmt::format("--quantize {}: expected {}", printable(text), kKnown));
}

uint32_t Quantization::file_type(WeightType stored) const {
  for (const Kind& kind : kKinds)
    if (kind.type == (none ? stored : type)) return kind.file_type;
  return stored == WeightType::kF16 ? 1 : stored == WeightType::kBF16 ? 32 : 0;
}

WeightType Quantization::type_of(const MatrixView& matrix, bool makes_logits) const {
  if (none) return matrix.type;
  const auto divides = [&](WeightType t) { return matrix.columns % format_info(t).block_elements == 0; };
  WeightType wanted = type;
  if (makes_logits && type != WeightType::kQ8_0)
    wanted = divides(WeightType::kQ6_K) ? WeightType::kQ6_K : WeightType::kQ8_0;
  if (wanted == WeightType::kQ4_K && !divides(wanted)) wanted = WeightType::kQ5_0;
  return divides(wanted) ? wanted : WeightType::kF16;
}

Result<std::vector<std::byte>> requantize(const MatrixView& view, WeightType type,
                                          const std::function<int64_t(int64_t)>& row_at, ThreadPool& pool) {
  const FormatInfo& from = format_info(view.type);
  const FormatInfo& to = format_info(type);
  const int64_t size_from = row_bytes(view);
  const int64_t size_to = view.columns / to.block_elements * to.block_bytes;
  std::vector<std::byte> out(static_cast<size_t>(view.rows * size_to));
  pool.run(view.rows, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(view.columns));
    for (int64_t r = begin; r < end; ++r) {
      const std::byte* source = view.data + row_at(r) * size_from;
      std::byte* target = out.data() + r * size_to;
      if (view.type == type) {
        std::memcpy(target, source, static_cast<size_t>(size_to));
      } else {
        from.decode(source, row.data(), row.size());
        to.encode(row.data(), target, row.size());
      }
    }
  });
  const auto row_is_finite = [&](int64_t r) {
    return is_finite(type, out.data() + r * size_to, static_cast<size_t>(view.columns));
  };
  for (int64_t r = 0; r < view.rows; ++r)
    if (!row_is_finite(r))
      return Status::error(
          fmt::format("found weights beyond {} in row {}, expected none", to.name, row_at(r)));
  return out;
}

Result<ModelSource> quantize_model(ModelSource source, const Quantization& quantization, ThreadPool& pool) {
  if (quantization.none) return source;
  struct Storage {
    std::shared_ptr<const void> before;
    std::map<const std::byte*, std::vector<std::byte>> tensors;  // by where their bytes are
  };
  auto storage = std::make_shared<Storage>();
  storage->before = source.storage;
  const auto convert = [&](MatrixView& view, bool makes_logits) -> Status {
    const WeightType type = quantization.type_of(view, makes_logits);
    if (type == view.type) return {};
    Result<std::vector<std::byte>> bytes = requantize(
        view, type, [](int64_t row) { return row; }, pool);
    if (!bytes.ok())
      return bytes.status().with_prefix(fmt::format("{}: tensor '{}': ", source.path,
                                                    printable(source.name_of ? source.name_of(view) : "")));
    if (source.release) source.release(view);
    view.type = type;
    view.data = bytes->data();
    storage->tensors.emplace(view.data, std::move(*bytes));
    return {};
  };
  KVFOLD_RETURN_IF_ERROR(convert(source.embedding, source.tied_output));
  if (source.tied_output) {
    source.output = source.embedding;
  } else {
    KVFOLD_RETURN_IF_ERROR(convert(source.output, true));
  }
  for (LayerTensors& l : source.layers)
    for (MatrixView* view : {&l.wq, &l.wk, &l.wv, &l.wo, &l.gate, &l.up, &l.down})
      KVFOLD_RETURN_IF_ERROR(convert(*view, false));
  source.discard = [storage](const MatrixView& view) { return storage->tensors.erase(view.data) != 0; };
  source.storage = std::move(storage);
  source.fingerprint = fingerprint(source);
  return source;
}

}  // namespace kvfold
