#include "tests/fuzz/targets.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/kv/cache_file.h"
#include "engine/kv/exchange.h"
#include "engine/kv/ops.h"
#include "engine/kv/projector.h"
#include "engine/safetensors.h"
#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/tokenizer.h"
#include "experiments/harness/corpus.h"
#include "experiments/harness/prompt_set.h"
#include "experiments/harness/table.h"
#include "loaders/checkpoint_config.h"
#include "loaders/checkpoint_tokenizer.h"
#include "loaders/gguf_model.h"
#include "loaders/json.h"
#include "loaders/sentencepiece_model.h"
#include "tests/fuzz/small_files.h"

namespace kvfold::fuzz {
namespace {

const std::string kPath = "some/file";

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "promise broken: %s\n", what.c_str());
  std::abort();
}

// `file`: the message names it first. What only the engine knows (a merge, a template) is named by its key.
void check(const Status& status, const std::string& file = kPath) {
  if (status.ok()) return;
  const std::string& message = status.message();
  require(message.starts_with(file), "the message begins with the path: " + message);
  require(message.size() < file.size() + 600, "the message is short: " + message);
  for (const char c : message) require(c >= ' ' && c < 127, "the message is one printable line: " + message);
}

std::shared_ptr<const MappedFile> file_of(std::span<const std::byte> bytes) {
  return MappedFile::of_bytes(kPath, {bytes.begin(), bytes.end()});
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The bytes as a file, for what reads none but by its path. In memory, gone with the process or with the
// machine.
class MemoryFile {
 public:
  MemoryFile(const std::string& name, std::string_view bytes) : path_(folder() + "/" + name) {
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  ~MemoryFile() { std::filesystem::remove(path_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }
  static const std::string& folder() {
    static const std::string kFolder = [] {
      std::string folder = "/dev/shm/kvfold-fuzz-" + std::to_string(getpid());
      std::filesystem::create_directories(folder);
      return folder;
    }();
    return kFolder;
  }

 private:
  std::string path_;
};

// Every id lies in the vocabulary, whatever the text.
void encode(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<TokenId> ids = tokenizer.encode(text);
  for (const TokenId id : ids) require(id >= 0 && id < tokenizer.size(), "ids lie in the vocabulary");
  tokenizer.decode(ids);
  tokenizer.decode(ids, false);
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const TokenId id : ids) streamed += stream.push(id);
  streamed += stream.finish();
}

void use_vocabulary(const VocabularySource& source, const std::shared_ptr<const void>& storage) {
  const auto tokenizer = Tokenizer::create(source, storage);
  check(tokenizer.status(), "tokenizer.");
  if (!tokenizer.ok()) return;
  for (const char* text : {"", "the <|im_start|> thin man 42", " \xE2\x96\x81 \xC3\xA9\xFF<0x0A></s>"})
    encode(**tokenizer, text);
  const auto chat = ChatTemplate::from(source);
  check(chat.status(), "");
  if (!chat.ok()) return;
  const std::vector<ChatMessage> messages = {{"user", "hi"}};
  check(chat->render(messages, true).status(), "");
}

}  // namespace

void run_gguf(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const Result<ModelSource> source = load_gguf_model(file_of(bytes));
  check(source.status());
  if (source.ok()) use_vocabulary(source->vocabulary, source->storage);
}

void run_safetensors(std::span<const std::byte> bytes) {
  const std::vector<std::byte> own(bytes.begin(), bytes.end());  // ends where the allocation ends
  const Result<SafetensorsFile> file = parse_safetensors(own, kPath);
  check(file.status());
  if (!file.ok()) return;
  size_t total = 0;
  for (const auto& [name, tensor] : file->tensors) total += tensor.bytes.size();
  require(total <= own.size(), "tensors lie in the file, side by side");
}

namespace {

void run_projector(std::span<const std::byte> bytes) {
  const MemoryFile file("projector", text_of(bytes));
  Result<ProjectorData> data = load_projector(file.path());
  check(data.status(), file.path());
  if (data.ok()) check(make_projector(std::move(*data)).status(), "projector: ");
}

}  // namespace

void run_cache(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const std::shared_ptr<const MappedFile> file = file_of(bytes);
  const Result<CacheFileInfo> info = read_cache_info(*file);
  check(info.status());
  constexpr size_t kPool = 1 << 20;
  if (!info.ok()) {
    const CacheShape shape = {1, 2, 8};
    const auto pool = PagePool::create(CacheType::kF32, shape.head_dim, kPool);
    require(pool.ok(), "a pool for the import");
    check(import_cache(*file, small_cache_model(), shape, *pool).status());
    require((*pool)->pages_held() == 0, "a pool is as it was");
    run_projector(bytes);
    return;
  }
  const auto pool = PagePool::create(info->type, info->shape.head_dim, kPool);
  if (!pool.ok()) return;  // one page of such heads is larger than the pool
  {
    const Result<KvCache> cache = load_cache(*file, info->model, info->shape, *pool);
    check(cache.status());
    if (cache.ok()) {
      require(cache->size() == info->rows, "as many rows as the header says");
      const Selection all = Selection::all(cache->shape(), cache->size());
      check(extract(*cache, all).status(), "");
      check(truncate(*cache, cache->size() / 2).status(), "");
    }
  }
  require((*pool)->pages_held() == 0, "a pool is as it was");
}

void run_tokenizer(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto choice = static_cast<unsigned>(bytes[0]) % 3;
  const std::span<const std::byte> rest = bytes.subspan(1);
  if (choice == 2) {
    if (rest.empty()) return;
    const auto model = read_sentencepiece_model(file_of(rest));
    check(model.status());
    if (model.ok()) use_vocabulary(model->source, model->storage);
    return;
  }
  static const std::shared_ptr<const Tokenizer> kTokenizers[] = {small_bpe(), small_spm()};
  const Tokenizer& tokenizer = *kTokenizers[choice];
  const std::string text = text_of(rest);
  encode(tokenizer, text);
  // Both vocabularies can write every byte. SPM reads U+2581 as a space.
  const EncodeOptions plain = {.parse_special = false, .add_bos = false};
  if (choice == 0 || text.find("\xE2\x96\x81") == std::string::npos)
    require(tokenizer.decode(tokenizer.encode(text, plain)) == text, "a text comes back");
}

void run_prompts(std::span<const std::byte> bytes) {
  const Result<PromptSet> set = parse_prompt_set(text_of(bytes), kPath);
  check(set.status());
  if (!set.ok()) return;
  for (const Trial& trial : set->trials) set->by_id(trial.mismatched);
}

void run_json(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto choice = static_cast<unsigned>(bytes[0]) % 3;
  const std::string text = text_of(bytes.subspan(1));
  if (choice == 0) {
    check(JsonObject::parse(text, kPath).status());
    return;
  }
  const MemoryFile file(choice == 1 ? "config.json" : "tokenizer.json", text);
  if (choice == 1) {
    check(read_checkpoint_config(MemoryFile::folder()).status(), file.path());
  } else {
    const auto vocabulary = read_tokenizer_file(file.path());
    check(vocabulary.status(), file.path());
    if (vocabulary.ok()) use_vocabulary(vocabulary->source, vocabulary->storage);
  }
}

void run_lines(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const MemoryFile file("lines.jsonl", text_of(bytes.subspan(1)));
  switch (static_cast<unsigned>(bytes[0]) % 3) {
    case 0:
      check(read_corpus(file.path(), "test", 0).status(), file.path());
      break;
    case 1:
      check(read_facts(file.path(), 0).status(), file.path());
      break;
    default:
      check(read_lines(file.path()).status(), file.path());
  }
}

}  // namespace kvfold::fuzz
