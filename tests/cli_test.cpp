// The programs as a user meets them: exit status, one line of error, JSON, and files with the right bytes.
#include <sys/stat.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "engine/gpu_memory.h"
#include "engine/session.h"
#include "loaders/model_loader.h"
#include "tests/cli_fixture.h"

namespace kvfold::testing {
namespace {

TEST_F(Cli, BadArgumentsAreOneLineAndExitTwo) {
  expect_refused("", "subcommand");
  expect_refused("frobnicate", "frobnicate");
  expect_refused("info", "MODEL");
  expect_refused("info tiny.gguf --frobnicate", "frobnicate");
  expect_refused("info absent.gguf", "absent.gguf");
  expect_refused("info .", "");
  expect_refused("tokenize tiny.gguf", "--text");
  expect_refused("tokenize tiny.gguf --text a --text-file b", "--text");
  expect_refused("tokenize tiny.gguf --text-file absent.txt", "absent.txt");
  expect_refused("generate tiny.gguf --prompt a -n -1", "-n");
  expect_refused("generate tiny.gguf --prompt a --threads 0", "threads");
  expect_refused("generate tiny.gguf --prompt a --temp nan", "temp");
  expect_refused("generate tiny.gguf --prompt ''", "");
  expect_refused("logits tiny.gguf --text a --out absent/x.npy", "absent");
  expect_refused("cache run tiny.gguf absent.safetensors --text ab", "absent.safetensors");
}

// Whatever an argument holds, a message shows of it what can be printed, and no more of it than can be read.
TEST_F(Cli, ForeignTextIsShownInOneShortPrintableLine) {
  const std::string hostile = "\"$(printf '\\033[31m\\007\\377\\302\\233\\177')\"";
  const std::string huge = "\"$(printf '%0100000d' 0 | tr 0 x)\"";
  ASSERT_EQ(kvfold("cache save tiny.gguf --text abc --out c.safetensors").status, 0);
  for (const std::string& text : {hostile, huge})
    for (const char* command :
         {"", "info tiny.gguf --frobnicate=", "generate tiny.gguf --prompt a --threads ",
          "generate tiny.gguf --prompt a --temp ", "generate tiny.gguf --prompt a --cache-type ",
          "generate tiny.gguf --prompt a --backend ", "generate tiny.gguf --prompt a --quantize ",
          "cache run tiny.gguf c.safetensors --text a --insert ",
          "cache run tiny.gguf c.safetensors --text a --positions ",
          "cache noise c.safetensors --out d --kind ", "cache keep c.safetensors --out d --select ",
          "cache keep c.safetensors --out d --select rows=",
          "cache keep c.safetensors --out d --select parts=",
          "cache extract c.safetensors --out d --fill none ",
          "cache set-positions c.safetensors --out d --positions ",
          "attention tiny.gguf c.safetensors --text a --out d --layers "})
      expect_refused(command + text, "");
  expect_refused("info " + hostile, "kvfold: ?[31m???");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("d")));
  // A path may be as long as the system lets it be, and stands as it is.
  const Ran path = kvfold("info '\xC3\xA9/'" + huge);
  EXPECT_TRUE(path.err.starts_with("kvfold: \xC3\xA9/xxx")) << path.err;
  EXPECT_LT(path.err.size(), 5000U);
}

TEST_F(Cli, ModelsNamesDoNotReachTheTerminalAsTheyAre) {
  folder_.write("named.gguf", tiny_model().string("general.name", "a\x1B[31m\xC2\x9B\x7F\nb").build());
  const Ran ran = kvfold("info named.gguf");
  EXPECT_NE(ran.out.find("a?[31m??\\nb\n"), std::string::npos) << ran.out;
  ASSERT_EQ(kvfold("cache save named.gguf --text abc --out c.safetensors").status, 0);
  for (const char* command : {"cache info c.safetensors", "inspect c.safetensors"})
    EXPECT_NE(kvfold(command).out.find("a?[31m??\\nb"), std::string::npos) << command;
}

// Of two models that are opened, which one it is about.
TEST_F(Cli, RefusedTokenizersNameTheFile) {
  folder_.write("merges.gguf", tiny_model().strings("tokenizer.ggml.merges", {"a none"}).build());
  const std::string what = "kvfold: merges.gguf: tokenizer.ggml.merges: merge 0";
  expect_refused("tokenize merges.gguf --text a", what);
  expect_refused("generate merges.gguf --prompt a", what);
  folder_.write("chat.gguf", tiny_model().string("tokenizer.chat_template", "{{ x }}").build());
  expect_refused("generate chat.gguf --chat --prompt a", "kvfold: chat.gguf: tokenizer.chat_template");
}

TEST_F(Cli, LinesOfTextsEndWhereTheirJsonEnds) {
  folder_.write("lines", std::string("\"a\"\n\"a\"\0b\n", 10));
  const Ran ran = kvfold("tokenize tiny.gguf --lines lines");
  EXPECT_EQ(ran.status, 2);
  EXPECT_EQ(ran.err, "kvfold: lines: line 2: found '\"a\"?b', expected a JSON string\n");
}

// What is no file is refused, and not waited for.
TEST_F(Cli, APipeThatNobodyWritesToIsRefused) {
  ASSERT_EQ(mkfifo(folder_.file("pipe").c_str(), 0666), 0);
  expect_refused("info pipe", "expected a regular file");
}

TEST_F(Cli, DamagedModelsAreOneLineAndExitTwo) {
  const std::string whole = TemporaryFolder::read(folder_.file("tiny.gguf"));
  folder_.write("short.gguf", whole.substr(0, 100));
  folder_.write("empty.gguf", "");
  folder_.write("text.gguf", "not a model\nat all\n");
  for (const char* name : {"short.gguf", "empty.gguf", "text.gguf"})
    expect_refused(std::string("info ") + name, name);
}

// As it is built where there is no nvcc. (.ci/without-cuda builds it that way.)
TEST_F(Cli, WithoutCudaAutoIsTheCpu) {
  const std::string generate = "kvfold_without_cuda generate tiny.gguf --prompt ab -n 4 --json --backend ";
  const Ran refused = run(generate + "cuda");
  EXPECT_EQ(refused.status, 2);
  EXPECT_EQ(refused.out, "");
  EXPECT_EQ(refused.err,
            "kvfold: backend 'cuda': not in this program, which was built without nvcc 12 or later; it has: "
            "cpu, auto\n");
  const Ran found = run(generate + "auto");
  EXPECT_EQ(found.status, 0) << found.err;
  EXPECT_EQ(found.err, "");
  EXPECT_EQ(nlohmann::json::parse(found.out).at("ids"),
            nlohmann::json::parse(run(generate + "cpu").out).at("ids"));
}

TEST_F(Cli, HelpSaysWhatEachOptionDoes) {
  for (const char* command :
       {"", "info", "tokenize", "logits", "generate", "perplexity", "cache", "cache save", "cache run"}) {
    const Ran ran = kvfold(std::string(command) + " --help");
    EXPECT_EQ(ran.status, 0) << command;
    EXPECT_NE(ran.out.find("--help"), std::string::npos) << command;
    EXPECT_EQ(ran.err, "") << command;
  }
}

TEST_F(Cli, InfoAndTokenize) {
  const auto info = json("info tiny.gguf");
  EXPECT_EQ(info.at("architecture"), "llama");
  EXPECT_EQ(info.at("layers"), 2);
  EXPECT_EQ(json("tokenize tiny.gguf --text 'ab<|im_end|>'").at("ids").size(), 3U);
  folder_.write("text.txt", "ab<|im_end|>");
  EXPECT_EQ(json("tokenize tiny.gguf --text-file text.txt"),
            json("tokenize tiny.gguf --text 'ab<|im_end|>'"));
}

// What may stand in a text: nothing, no UTF-8 at all, bytes of no character, special tokens alone. The ids
// say the bytes again, and every command takes the text or refuses it in one line.
TEST_F(Cli, AnyTextIsTakenOrRefusedInOneLine) {
  std::string bytes;
  for (int i = 0; i < 600; ++i) bytes += static_cast<char>(i * i % 251 + i / 256);
  std::string specials;
  for (int i = 0; i < 40; ++i)
    specials += i % 3 == 0 ? "<|im_start|>" : i % 3 == 1 ? "<|im_end|>" : "<|endoftext|>";
  const std::string texts[] = {"",
                               " ",
                               "\n",
                               std::string(3, '\0'),
                               "\xFF",
                               "\xC3",
                               "\xE2\x96",
                               "\xC0\x80\xED\xA0\x80\xF5\x80\x80\x80",
                               "a\xF0\x9F\x98 b",
                               "\x1B[2J\x07",
                               bytes,
                               specials,
                               "<|im_start|",
                               "<|im_start|>"};
  for (const std::string& text : texts) {
    folder_.write("text", text);
    const auto tokens = json("tokenize tiny.gguf --text-file text");
    EXPECT_EQ(tokens.at("ids").empty(), text.empty());
    if (text == specials) {
      EXPECT_EQ(tokens.at("ids").size(), 40U);
    }
    for (const std::string command : {"logits tiny.gguf --out l.npy", "perplexity tiny.gguf",
                                      "cache save tiny.gguf --out c.safetensors"}) {
      const Ran ran = kvfold(command + " --text-file text");
      const size_t needed = command.starts_with("perplexity") ? 2 : 1;
      EXPECT_EQ(ran.status, tokens.at("ids").size() >= needed ? 0 : 2) << command << ran.err;
      EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), ran.status == 2 ? 1 : 0) << ran.err;
    }
  }
  for (const char* prompt : {"$(printf '\\377\\303')", "<|im_start|><|im_end|><|endoftext|>", " "}) {
    EXPECT_EQ(kvfold(std::string("generate tiny.gguf -n 2 --prompt \"") + prompt + '"').status, 0) << prompt;
    EXPECT_EQ(kvfold(std::string("generate tiny.gguf -n 2 --chat --prompt \"") + prompt + '"').status, 0)
        << prompt;
  }
  // A prompt set is JSON, which is UTF-8.
  folder_.write("set.jsonl", "{\"id\": \"\xFF\"}\n");
  const Ran ran = run("run_2a --model tiny.gguf --prompts set.jsonl --runs runs");
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("kvfold: set.jsonl"), std::string::npos) << ran.err;
}

// A megabyte is tokenized; where its rows are more than the pool of pages holds, that is said before anything
// is computed.
TEST_F(Cli, AMegabyteIsTokenizedAndRefusedWhereItDoesNotFit) {
  std::string text;
  while (text.size() < (1 << 20)) text += "the <|im_start|>\xFF\xC3 and \xE2\x96\x81\n 42 ";
  folder_.write("text", text);
  EXPECT_GT(json("tokenize tiny.gguf --text-file text").at("ids").size(), size_t{200'000});
  TinyModelOptions wide;
  wide.layers = 8;
  wide.heads = wide.kv_heads = 8;
  wide.head_dim = 64;
  folder_.write("wide.gguf", tiny_model(wide).build());
  for (const std::string command :
       {"logits wide.gguf --out l.npy", "perplexity wide.gguf", "cache save wide.gguf --out c.safetensors"})
    expect_refused(command + " --text-file text", "cache pool exhausted");
}

// Norms of queries and keys: two of 16 values in each of two layers.
TEST_F(Cli, InfoPlansMemoryForEveryTensor) {
  TinyModelOptions with_norms;
  with_norms.architecture = "qwen3";
  folder_.write("norms.gguf", tiny_model(with_norms).build());
  const auto plan = json("info tiny.gguf").at("memory_plan");
  const auto more = json("info norms.gguf").at("memory_plan");
  const auto weights = [](const auto& of, const char* where) {
    return of.at(where).at("weights").template get<int64_t>();
  };
  EXPECT_EQ(weights(more, "cpu"), weights(plan, "cpu") + int64_t{2} * 2 * 16 * 4);
  EXPECT_EQ(more.at("cpu").at("total"), plan.at("cpu").at("total").get<int64_t>() + 256);
  // On a GPU each is a piece of its own.
  EXPECT_EQ(weights(more, "cuda"), weights(plan, "cuda") + int64_t{2} * 2 * 512);
}

TEST_F(Cli, InfoCountsWhatATokenReads) {
  const auto read = [](const auto& info) {
    int64_t bytes = 0;
    for (const auto& type : info.at("weight_bytes_per_token")) bytes += type.template get<int64_t>();
    return bytes;
  };
  TinyModelOptions options;
  for (const bool tied : {true, false}) {
    options.tied = tied;
    folder_.write("model.gguf", tiny_model(options).build());
    const ModelSource source = *load_model_source(folder_.file("model.gguf"));
    const int64_t embeddings = source.config.vocab_size * int64_t{source.config.model_dim} / 32 * 18;  // Q4_0
    const auto info = json("info model.gguf");
    EXPECT_EQ(read(info) + (tied ? 0 : embeddings), info.at("weight_bytes"));
  }
}

// The numbers are those by which a load takes memory (tests/cuda/cuda_memory_test.cpp).
TEST_F(Cli, InfoShowsTheGpusPlan) {
  const ModelSource source = *load_model_source(folder_.file("tiny.gguf"));
  const GpuPlan plan = gpu_plan(source, SessionOptions{}.chunk, Prefill::kCublas);
  const auto shown = json("info tiny.gguf --backend cpu").at("memory_plan").at("cuda");
  EXPECT_EQ(shown.at("weights"), plan.weights);
  EXPECT_EQ(shown.at("activations"), plan.activations);
  EXPECT_EQ(shown.at("scratch"), plan.scratch);
  EXPECT_EQ(shown.at("cublas"), plan.cublas);
  const size_t kv = gpu_chunks(shown.at("kv").get<size_t>());
  EXPECT_EQ(shown.at("total_with_cublas"), plan.arena() + kv);
  EXPECT_EQ(shown.at("total"), gpu_plan(source, SessionOptions{}.chunk, Prefill::kTiles).arena() + kv);
}

TEST_F(Cli, InfoSaysWhatAModelWouldRunOn) {
  EXPECT_TRUE(json("info tiny.gguf --backend cpu").at("backend").get<std::string>().starts_with("cpu"));
  const Ran ran = run("kvfold_without_cuda info tiny.gguf --json");
  EXPECT_TRUE(nlohmann::json::parse(ran.out).at("backend").get<std::string>().starts_with("cpu")) << ran.out;
}

// Programs of every kind refuse a GPU's number where there is none to take.
TEST_F(Cli, DevicesAreRefusedInOneLine) {
  const std::string device = " --device 7 --backend cpu";
  for (const std::string command :
       {"kvfold info tiny.gguf", "kvfold generate tiny.gguf --prompt a",
        "run_2a --model tiny.gguf --runs runs", "run_position --model tiny.gguf --runs runs"}) {
    const Ran ran = run(command + device);
    EXPECT_EQ(ran.status, 2) << command;
    EXPECT_EQ(ran.err, "kvfold: device 7: the backend 'cpu' is on no GPU\n") << command;
  }
  EXPECT_FALSE(std::filesystem::exists(folder_.file("runs")));
  expect_refused("info tiny.gguf --device -1", "--device");
  expect_refused("info tiny.gguf --device first", "--device");
  const Ran ran = run("kvfold_without_cuda generate tiny.gguf --prompt a --device 0");
  EXPECT_EQ(ran.status, 2);
  EXPECT_NE(ran.err.find("backend 'cuda': not in this program"), std::string::npos) << ran.err;
}

TEST_F(Cli, LogitsAreTheSameFileForAnyThreadsAndChunks) {
  folder_.write("text.txt", "The quick brown fox jumps over the lazy dog, and 12345 times more.");
  std::string first;
  for (const char* options :
       {"", "--threads 1", "--threads 2", "--chunk 1", "--chunk 7", "--threads 2 --chunk 7"}) {
    ASSERT_EQ(kvfold(std::string("logits tiny.gguf --text-file text.txt --out l.npy ") + options).status, 0);
    const std::string bytes = TemporaryFolder::read(folder_.file("l.npy"));
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes, first) << options;
  }
  // NPY 1.0: magic, version, header length, and a header that pads to a multiple of 64.
  ASSERT_EQ(first.substr(0, 6), "\x93NUMPY");
  const size_t header = 10 + static_cast<uint8_t>(first[8]) + 256U * static_cast<uint8_t>(first[9]);
  EXPECT_EQ(header % 64, 0U);
  const auto tokens = json("tokenize tiny.gguf --text-file text.txt").at("ids").size();
  const auto vocabulary = json("info tiny.gguf").at("vocab_size").get<size_t>();
  EXPECT_EQ(first.size() - header, tokens * vocabulary * sizeof(float));
}

TEST_F(Cli, GenerateIsReproducible) {
  const auto greedy = ids("generate tiny.gguf --prompt abc -n 8");
  EXPECT_EQ(greedy, ids("generate tiny.gguf --prompt abc -n 8 --threads 1"));
  const auto sampled = ids("generate tiny.gguf --prompt abc -n 8 --temp 1 --seed 3");
  EXPECT_EQ(sampled, ids("generate tiny.gguf --prompt abc -n 8 --temp 1 --seed 3"));
  EXPECT_NE(sampled, ids("generate tiny.gguf --prompt abc -n 8 --temp 1 --seed 4"));
  EXPECT_EQ(kvfold("generate tiny.gguf --prompt abc -n 4 --chat").status, 0);
}

TEST_F(Cli, PerplexityIsExpOfNll) {
  const auto out = json("perplexity tiny.gguf --text 'some text to score'");
  EXPECT_NEAR(out.at("perplexity").get<double>(), std::exp(out.at("nll").get<double>()), 1e-6);
  EXPECT_GT(out.at("tokens").get<int>(), 5);
}

TEST_F(Cli, SavedCacheContinuesAsTheTextWould) {
  ASSERT_EQ(kvfold("cache save tiny.gguf --text 'abc def ' --out c.safetensors").status, 0);
  const auto injected = json("cache run tiny.gguf c.safetensors --text 'ghi' -n 8");
  const auto fed = json("generate tiny.gguf --prompt 'abc def ghi' -n 8");
  EXPECT_EQ(injected.at("ids"), fed.at("ids"));
  EXPECT_EQ(kvfold("cache run tiny.gguf c.safetensors --text 'ghi' --insert 1 --positions gap:4 --select "
                   "'layers=0 rows=0-2' -n 2")
                .status,
            0);
  expect_refused("cache run tiny.gguf c.safetensors --text ghi --select rows=5-2", "reversed");
  expect_refused("cache run tiny.gguf c.safetensors --text ghi --select rows=0-99", "exist");
  expect_refused("cache run tiny.gguf c.safetensors --text ghi --positions gap:-1", "gap:N");
  expect_refused("cache run tiny.gguf c.safetensors --text ghi --insert 3", "slot in 0-2");
  expect_refused("cache run tiny.gguf c.safetensors --text ghi --cache-type f32", "f16");
  TinyModelOptions deeper;
  deeper.layers = 3;
  folder_.write("other.gguf", tiny_model(deeper).build());
  expect_refused("cache run other.gguf c.safetensors --text ghi", "2 layers x 2 KV heads x 16");
}

}  // namespace
}  // namespace kvfold::testing
