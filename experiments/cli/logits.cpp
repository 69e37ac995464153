// logits: the logits of every token of a text, as a NumPy file.
#include <fmt/core.h>

#include <bit>
#include <memory>

#include "engine/file.h"
#include "experiments/cli/common.h"

namespace kvfold::cli {
namespace {

// The header of a .npy file, version 1.0, of little-endian f32 in C order (NumPy's format specification, NEP
// 1).
std::string npy_header(size_t rows, size_t columns) {
  static_assert(std::endian::native == std::endian::little);
  const std::string dict =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  constexpr size_t kPreamble = 10;  // magic, version, length
  const size_t padded = (kPreamble + dict.size() + 1 + 63) / 64 * 64 - kPreamble;
  std::string header = "\x93NUMPY";
  header += '\x01';
  header += '\0';
  header += static_cast<char>(padded & 0xFF);
  header += static_cast<char>(padded >> 8);
  header += dict;
  header.append(padded - dict.size() - 1, ' ');
  return header + '\n';
}

struct Options {
  ModelOptions model;
  TextOptions text;
  std::string out;
  bool json = false;
};

Status logits(const Options& options) {
  KVFOLD_ASSIGN_OR_RETURN(const std::string text, options.text.read());
  KVFOLD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, options.model.open());
  KVFOLD_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, encode(*session, text));
  const auto vocabulary = static_cast<size_t>(session->model().config().vocab_size);
  KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(options.out));
  KVFOLD_RETURN_IF_ERROR(file.write(npy_header(ids.size(), vocabulary)));
  KvCache cache = session->make_cache();
  Status written;
  const Feed feed{&cache, ids, Wanted::kAll};
  KVFOLD_RETURN_IF_ERROR(session->feed(std::span(&feed, 1), [&](int, int, std::span<const float> row) {
    if (written.ok()) written = file.write(std::as_bytes(row));
  }));
  KVFOLD_RETURN_IF_ERROR(written);
  KVFOLD_RETURN_IF_ERROR(file.commit());
  if (options.json) {
    print_json({{"ids", ids}, {"shape", {ids.size(), vocabulary}}, {"out", options.out}});
  } else {
    fmt::print("{}: [{} tokens, {}] f32\n", options.out, ids.size(), vocabulary);
  }
  return {};
}

}  // namespace

Action add_logits(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->model.declare(app);
  options->text.declare(app);
  app.add_option("--out", options->out, "the .npy file to write: f32 [tokens, vocabulary]")->required();
  app.add_flag("--json", options->json, "print ids, shape and file as JSON");
  return [options] { return logits(*options); };
}

}  // namespace kvfold::cli
