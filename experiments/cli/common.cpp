#include "experiments/cli/common.h"

#include <fmt/core.h>

#include "engine/file.h"
#include "engine/printable.h"
#include "experiments/backend_options.h"
#include "experiments/say.h"

namespace kvfold::cli {

void ModelOptions::declare(CLI::App& app, bool with_cache_type) {
  app.add_option("MODEL", model, "a GGUF file, a checkpoint's folder, or a name of weights/models.json")
      ->required();
  add_backend_options(app, backend, device);
  app.add_option(
         "--prefill", prefill,
         "how a GPU makes products of many rows: tiles (the CPU's bits), cublas, or auto (the faster)")
      ->check(CLI::IsMember({"tiles", "cublas", "auto"}))
      ->capture_default_str();
  app.add_option("--threads", threads, "threads (default: one for every CPU allowed)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--chunk", chunk, "most tokens computed at once; never changes a result")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_flag("--exact", exact, "f32 activations instead of int8 blocks");
  app.add_option("--quantize", quantize,
                 "bring the matrices to q4_0, q4_1, q8_0 or q4_k as they are loaded; none: as stored")
      ->capture_default_str();
  if (!with_cache_type) return;
  app.add_option("--cache-type", cache_type, "type of KV pages: f16, f32 or q8")
      ->check(CLI::IsMember({"f16", "f32", "q8"}))
      ->capture_default_str();
}

Result<std::unique_ptr<Session>> ModelOptions::open() const {
  OpenOptions options;
  options.cpu.threads = threads;
  options.cpu.precision = exact ? Precision::kExact : Precision::kInt8;
  options.session.chunk = chunk;
  options.backend = backend;
  options.device = device;
  options.notice = [](const std::string& line) { say(line); };
  KVFOLD_ASSIGN_OR_RETURN(options.prefill, parse_prefill(prefill));
  KVFOLD_ASSIGN_OR_RETURN(options.quantization, Quantization::parse(quantize));
  KVFOLD_ASSIGN_OR_RETURN(options.session.cache_type, parse_cache_type(cache_type));
  return open_session(model, options);
}

void TextOptions::declare(CLI::App& app) {
  CLI::Option_group* group = app.add_option_group("text", "the text");
  group->add_option("--text", text, "the text itself");
  group->add_option("--text-file", file, "a file with the text");
  group->require_option(1);
}

Result<std::string> TextOptions::read() const {
  if (file.empty()) return text;
  return read_text_file(file);
}

CLI::Validator number_in(double low, double high) {
  const auto check = [low, high](const std::string& text) {
    double value = 0;
    if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return std::string();
    return fmt::format("'{}' is not a number in [{}, {}]", printable(text), low, high);
  };
  return CLI::Validator(check, fmt::format("NUMBER in [{}, {}]", low, high));
}

Result<std::vector<TokenId>> encode(const Session& session, const std::string& text) {
  std::vector<TokenId> ids = session.tokenizer().encode(text);
  if (ids.empty()) return Status::error("the text has no tokens; expected at least one");
  return ids;
}

void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

Result<Continuation> continue_from(Session& session, KvCache& cache, TokenId next, int count,
                                   Sampler& sampler, const std::function<void(const std::string&)>& watch) {
  Continuation out;
  StreamDecoder decoder(session.tokenizer());
  const auto emit = [&](const std::string& text) {
    out.text += text;
    if (watch && !text.empty()) watch(text);
  };
  while (static_cast<int>(out.ids.size()) < count) {
    if (session.tokenizer().is_end(next)) {
      out.ended = true;
      break;
    }
    out.ids.push_back(next);
    emit(decoder.push(next));
    if (static_cast<int>(out.ids.size()) == count) break;
    KVFOLD_ASSIGN_OR_RETURN(next, session.feed(cache, std::span(&out.ids.back(), 1), sampler));
  }
  emit(decoder.finish());
  return out;
}

Result<CacheType> parse_cache_type(const std::string& text) {
  if (text == "f16") return CacheType::kF16;
  if (text == "f32") return CacheType::kF32;
  if (text == "q8") return CacheType::kQ8;
  return Status::error(fmt::format("cache type '{}': expected f16, f32 or q8", printable(text)));
}

}  // namespace kvfold::cli
