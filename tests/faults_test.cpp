// The Nth allocation, open, read, mmap, write, fsync or rename fails, once and from then on, for every N
// until the operation succeeds: it reports an error, gives everything back, leaves no half-written file, and
// harms nothing that was there before. (SQLite's way of testing.) Programs as a whole: faults_cli_test.cpp.
#include "tests/faults/faults.h"

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <new>

#include "engine/kv/cache_file.h"
#include "engine/kv/ops.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "experiments/harness/metrics.h"
#include "loaders/convert.h"
#include "loaders/gguf_model.h"
#include "tests/tiny_model.h"

namespace kvfold::testing {
namespace {

using faults::Kind;

// The operation under a fault. Memory that runs out is an exception, as everywhere in C++.
Status attempt(const std::function<Status()>& operation, Kind kind, int64_t n, bool persistent,
               bool& failed) {
  faults::arm(kind, n, persistent);
  try {
    Status status = operation();
    failed = faults::disarm();
    return status;
  } catch (const std::bad_alloc&) {
    failed = faults::disarm();
    return Status::error("not enough memory");
  } catch (const std::exception& error) {
    failed = faults::disarm();
    return Status::error(error.what());
  }
}

// Every N; returns how many faults struck. `check` looks at what the operation left behind.
int64_t sweep(Kind kind, bool persistent, const std::function<Status()>& operation,
              const std::function<void(const Status&)>& check) {
  EXPECT_TRUE(operation().ok());  // what is made once for the whole process is made now
  check({});
  for (int64_t n = 1; n < 1'000'000; ++n) {
    const int64_t before = faults::live_allocations();
    {
      bool failed = false;
      const Status status = attempt(operation, kind, n, persistent, failed);
      check(status);
      if (!failed) {
        EXPECT_TRUE(status.ok()) << status.message();
        return n - 1;
      }
      EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
    }
    EXPECT_EQ(faults::live_allocations(), before)
        << faults::kKindNames[static_cast<int>(kind)] << " " << n << (persistent ? " and on" : "");
    if (::testing::Test::HasFailure()) return n;
  }
  ADD_FAILURE() << "never succeeds";
  return 0;
}

// Allocations of an operation that reads JSON: the library's destructors ask for memory, and end the process
// where there is none, as the programs' own handler does with a line (last_words.h). So each N has a process
// of its own.
void sweep_in_children(bool persistent, const std::function<Status()>& operation,
                       const std::function<void(const Status&)>& check) {
  EXPECT_TRUE(operation().ok());
  check({});
  constexpr int kStruck = 2;
  for (int64_t n = 1; n < 1'000'000; ++n) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::set_terminate([] {
        remove_temporary_files();
        _exit(kStruck);
      });
      bool failed = false;
      const Status status = attempt(operation, Kind::kAllocation, n, persistent, failed);
      _exit(!status.ok() ? kStruck : failed ? 1 : 0);
    }
    int code = 0;
    ASSERT_EQ(waitpid(child, &code, 0), child);
    ASSERT_TRUE(WIFEXITED(code)) << "allocation " << n << " ends in signal " << WTERMSIG(code);
    check(WEXITSTATUS(code) == kStruck ? Status::error("not enough memory") : Status());
    if (::testing::Test::HasFailure()) FAIL() << "allocation " << n;
    if (WEXITSTATUS(code) != 0) continue;
    EXPECT_GT(n, 10);
    return;
  }
  ADD_FAILURE() << "never succeeds";
}

class Faults : public ::testing::Test {
 protected:
  Faults() {
    TinyModelOptions options;
    options.layers = 1;
    folder_.write("model.gguf", tiny_model(options).build());
    one_thread_.cpu.threads = 1;
    Result<std::unique_ptr<Session>> session = open_session(folder_.file("model.gguf"), one_thread_);
    EXPECT_TRUE(session.ok()) << session.status().message();
    session_ = std::move(*session);
  }

  // Allocations, and each kind of call that the operation makes.
  void expect_clean(const std::function<Status()>& operation, const std::function<void(const Status&)>& check,
                    std::span<const Kind> kinds, bool uses_json = false) {
    for (const bool persistent : {false, true}) {
      for (const Kind kind : kinds) {
        EXPECT_GT(sweep(kind, persistent, operation, check), 0) << faults::kKindNames[static_cast<int>(kind)];
        if (HasFailure()) return;
      }
      if (uses_json) {
        sweep_in_children(persistent, operation, check);
      } else {
        EXPECT_GT(sweep(Kind::kAllocation, persistent, operation, check), 10);
      }
      if (HasFailure()) return;
    }
  }

  // A cache of `rows` rows.
  KvCache fed(int rows) {
    KvCache cache = session_->make_cache();
    const std::vector<TokenId> ids(static_cast<size_t>(rows), 5);
    EXPECT_TRUE(session_->feed(cache, ids).ok());
    return cache;
  }
  CacheModelInfo info() const { return cache_model_info(session_->model().source()); }

  TemporaryFolder folder_;
  OpenOptions one_thread_;
  std::unique_ptr<Session> session_;
};

TEST_F(Faults, LoadingAModel) {
  const std::string path = folder_.file("model.gguf");
  const auto load = [&]() -> Status { return open_session(path, one_thread_).status(); };
  expect_clean(
      load, [](const Status&) {}, std::array{Kind::kOpen, Kind::kMap});
  // What did not load before loads now, and computes the same.
  KvCache cache = session_->make_cache();
  const std::vector<TokenId> ids = {1, 2, 3};
  const auto expected = session_->feed(cache, ids);
  const auto again = open_session(path, one_thread_);
  ASSERT_TRUE(again.ok());
  KvCache other = (*again)->make_cache();
  EXPECT_EQ(*(*again)->feed(other, ids), *expected);
}

TEST_F(Faults, LoadingACheckpoint) {
  const std::string path = std::string(KVFOLD_SOURCE_DIR) + "/tests/data/checkpoints/llama-9-3-tied";
  const auto load = [&]() -> Status { return open_session(path, one_thread_).status(); };
  expect_clean(
      load, [](const Status&) {}, std::array{Kind::kOpen, Kind::kMap}, true);
}

// What libraries of C say of memory that they lack is not taken for an answer.
TEST_F(Faults, TextsInLibrariesOfC) {
  const std::string text = "My name is \xC3\x89milie and I live in Seattle.";
  const std::vector<std::string> markers = {"Seattle", "\xC3\xA9milie"};
  const std::optional<double> ratio = zlib_ratio(text);
  constexpr const char* kNormal = "Caf\xC3\xA9 au lait, s'il vous pla\xC3\xAEt";
  std::vector<std::string> found;
  std::optional<double> now;
  std::string normal;
  const auto measure = [&]() -> Status {
    found = find_markers(text, markers);
    now = zlib_ratio(text);
    normal = normalize_nfc("Cafe\xCC\x81 au lait, s'il vous plai\xCC\x82t");
    return {};
  };
  const auto check = [&](const Status& status) {
    EXPECT_TRUE(!status.ok() || (found == markers && now == ratio && normal == kNormal));
    found = {};
    now.reset();
    normal = {};
  };
  expect_clean(measure, check, {});
}

TEST_F(Faults, SavingACache) {
  const KvCache old = fed(3);
  const KvCache cache = fed(40);
  const std::string path = folder_.file("cache.safetensors");
  ASSERT_TRUE(save_cache(old, info(), path).ok());
  const std::string before = TemporaryFolder::read(path);
  ASSERT_TRUE(save_cache(cache, info(), folder_.file("whole")).ok());
  const std::string after = TemporaryFolder::read(folder_.file("whole"));
  const size_t entries = folder_.entries();
  const auto save = [&] { return save_cache(cache, info(), path); };
  // The old file or the new one, whole, and nothing beside it. Where the file is in place and the folder
  // cannot be flushed the new one is there, and yet an error, as a crash could undo it.
  const auto check = [&](const Status& status) {
    const std::string now = TemporaryFolder::read(path);
    EXPECT_TRUE(now == after || (now == before && !status.ok())) << status.message();
    EXPECT_EQ(folder_.entries(), entries);
    folder_.write("cache.safetensors", before);
  };
  expect_clean(save, check, std::array{Kind::kOpen, Kind::kWrite, Kind::kFlush, Kind::kRename}, true);
  // What could not be flushed does not take the name: after a crash it might be empty.
  bool failed = false;
  EXPECT_FALSE(attempt(save, Kind::kFlush, 1, false, failed).ok());
  EXPECT_TRUE(failed);
  EXPECT_EQ(TemporaryFolder::read(path), before);
}

// A signal that arrives in the middle of a call is no error of the file's.
TEST_F(Faults, InterruptedCallsAreMadeAgain) {
  const std::string path = folder_.file("file");
  const auto write = [&]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
    KVFOLD_RETURN_IF_ERROR(file.reserve(9));
    KVFOLD_RETURN_IF_ERROR(file.write("begin "));
    const std::string end = "end";
    KVFOLD_RETURN_IF_ERROR(file.write_at(6, std::as_bytes(std::span(end))));
    return file.commit();
  };
  for (int64_t n = 1; n <= 4; ++n) {
    faults::arm(Kind::kWrite, n, false, EINTR);
    const Status status = write();
    EXPECT_EQ(faults::disarm(), n <= 3);  // fallocate, write, pwrite
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(TemporaryFolder::read(path), "begin end");
    std::filesystem::remove(path);
  }
  folder_.write("file", "text");
  faults::arm(Kind::kRead, 1, false, EINTR);
  const Result<std::string> text = read_text_file(path);
  EXPECT_TRUE(faults::disarm());
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_EQ(*text, "text");
}

// Where the file system knows no fallocate, the file gets its size without; where that fails too, nothing is
// left of it.
TEST_F(Faults, FileSystemsWithoutFallocate) {
  const std::string path = folder_.file("file");
  const size_t entries = folder_.entries();
  for (const int error : {EOPNOTSUPP, ENOSYS}) {
    const auto reserve = [&]() -> Status {
      KVFOLD_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
      KVFOLD_RETURN_IF_ERROR(file.reserve(5));
      return file.commit();
    };
    faults::arm(Kind::kWrite, 1, false, error);
    const Status once = reserve();
    faults::arm(Kind::kWrite, 1, true, error);
    const Status always = reserve();
    faults::disarm();
    EXPECT_TRUE(once.ok()) << once.message();
    EXPECT_EQ(TemporaryFolder::read(path), std::string(5, '\0'));
    EXPECT_EQ(always.message(), path + ": cannot write: " + std::strerror(error));
    std::filesystem::remove(path);
    EXPECT_EQ(folder_.entries(), entries);
  }
}

TEST_F(Faults, ReadingAText) {
  const std::string path = folder_.write("text", std::string(100000, 'x'));
  for (const Kind kind : {Kind::kOpen, Kind::kRead})
    EXPECT_GT(sweep(
                  kind, false, [&] { return read_text_file(path).status(); },
                  [&](const Status& status) {
                    const char* call =
                        kind == Kind::kOpen ? "open: Too many open files" : "read: Input/output error";
                    EXPECT_TRUE(status.ok() || status.message() == path + ": cannot " + call)
                        << status.message();
                  }),
              0);
}

TEST_F(Faults, LoadingACache) {
  const std::string path = folder_.file("cache.safetensors");
  ASSERT_TRUE(save_cache(fed(40), info(), path).ok());
  const size_t held = session_->pool()->pages_held();
  const auto load = [&]() -> Status {
    return load_cache(path, info(), session_->model().cache_shape(), session_->pool()).status();
  };
  expect_clean(
      load, [&](const Status&) { EXPECT_EQ(session_->pool()->pages_held(), held); },
      std::array{Kind::kOpen, Kind::kMap}, true);
}

TEST_F(Faults, CacheOperations) {
  const KvCache cache = fed(40);
  const auto before = cache.rows().positions;
  const size_t held = session_->pool()->pages_held();
  const auto operate = [&]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(const Selection some,
                            Selection::parse("heads=1 rows=3-20", cache.shape(), cache.size()));
    KVFOLD_ASSIGN_OR_RETURN(const KvCache erased, erase(cache, some));
    KVFOLD_ASSIGN_OR_RETURN(const KvSlice slice, extract(cache, Selection::all(cache.shape(), cache.size())));
    KVFOLD_ASSIGN_OR_RETURN(const KvCache inserted, insert(erased, slice, 7, {}));
    KVFOLD_ASSIGN_OR_RETURN(const KvCache noisy, noise(cache, some, NoiseKind::kChannel, 1));
    return mix(cache, noisy, 0.5, some).status();
  };
  expect_clean(operate,
               [&](const Status&) {
                 EXPECT_EQ(session_->pool()->pages_held(), held);
                 EXPECT_EQ(cache.rows().positions, before);
               },
               {});
}

// Memory that runs out in the middle of a feed: other caches are as they were.
TEST_F(Faults, Feeding) {
  const KvCache bystander = fed(40);
  std::vector<float> row(bystander.shape().head_dim);
  bystander.load(Part::kValue, 0, 1, 39, row.data());
  const std::vector<float> before = row;
  const std::vector<TokenId> ids(70, 9);
  const auto feed = [&]() -> Status {
    KvCache cache = bystander.fork();
    return session_->feed(cache, ids).status();
  };
  expect_clean(feed,
               [&](const Status&) {
                 bystander.load(Part::kValue, 0, 1, 39, row.data());
                 EXPECT_EQ(row, before);
                 EXPECT_EQ(bystander.size(), 40);
               },
               {});
}

TEST_F(Faults, ConvertingAModel) {
  const std::string out = folder_.file("out.gguf");
  const size_t entries = folder_.entries();
  const auto convert = [&]() -> Status {
    KVFOLD_ASSIGN_OR_RETURN(const ModelSource source, load_gguf_model(folder_.file("model.gguf")));
    ThreadPool pool(1);
    return convert_to_gguf(source, {}, pool, out);
  };
  const auto check = [&](const Status& status) {
    EXPECT_EQ(folder_.entries(), entries + (std::filesystem::exists(out) ? 1 : 0));
    EXPECT_TRUE(!status.ok() || load_gguf_model(out).ok());
    std::filesystem::remove(out);
  };
  expect_clean(convert, check,
               std::array{Kind::kOpen, Kind::kMap, Kind::kWrite, Kind::kFlush, Kind::kRename});
}

}  // namespace
}  // namespace kvfold::testing
