// Mapped files, and files that appear whole or not at all. Calls that fail on purpose: faults_test.cpp.
#include "engine/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <optional>
#include <utility>

#include "tests/must.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

using Mapped = std::shared_ptr<const MappedFile>;

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

class File : public ::testing::Test {
 protected:
  std::string refusal(const std::string& name) {
    const auto opened = MappedFile::open(folder_.file(name));
    return opened.ok() ? "no error" : opened.status().message().substr(folder_.file(name).size());
  }
  // A path of more than 1023 bytes.
  std::string long_path(const std::string& name) {
    std::string folder = "deep";
    for (int i = 0; i < 5; ++i) folder += "/" + std::string(250, 'x');
    std::filesystem::create_directories(folder_.file(folder));
    return folder_.file(folder + "/" + name);
  }
  TemporaryFolder folder_;
};

// ---- maps ----

TEST_F(File, WhatIsNoFileWithBytesIsNotMapped) {
  folder_.write("empty", "");
  std::filesystem::create_directory(folder_.file("folder"));
  EXPECT_EQ(refusal("absent"), ": cannot open: No such file or directory");
  EXPECT_EQ(refusal("empty"), ": expected a regular file that is not empty, found an empty file");
  EXPECT_EQ(refusal("folder"), ": expected a regular file that is not empty, found something else");
  EXPECT_EQ(text_of(*must(MappedFile::open(folder_.write("file", "abc")))), "abc");
}

// Written into, it is not what was opened; replaced by another file or gone, it is.
TEST_F(File, ChangesWhileInUseAreNoticed) {
  const std::string path = folder_.write("file", "abc");
  const Mapped file = must(MappedFile::open(path));
  const std::string changed = path + ": the file was changed while it was in use";
  EXPECT_TRUE(file->unchanged().ok());
  std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::seconds(2));
  EXPECT_EQ(file->unchanged().message(), changed);
  const Mapped again = must(MappedFile::open(path));
  EXPECT_TRUE(again->unchanged().ok());
  std::filesystem::last_write_time(path,
                                   std::filesystem::last_write_time(path) + std::chrono::nanoseconds(1000));
  EXPECT_EQ(again->unchanged().message(), changed);
  std::ofstream(path, std::ios::app) << "d";
  EXPECT_EQ(file->unchanged().message(), changed);
  std::filesystem::rename(folder_.write("other", "other"), path);
  EXPECT_TRUE(file->unchanged().ok());
  EXPECT_EQ(text_of(*file), "abc");
  std::filesystem::remove(path);
  EXPECT_TRUE(file->unchanged().ok());
  for (const size_t size : {0, 3})
    EXPECT_TRUE(MappedFile::of_bytes(path, std::vector<std::byte>(size))->unchanged().ok());
}

// Kilobytes of the mapping of `path` that lie in memory.
int resident(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.ends_with(path)) here = true;
    if (here && line.starts_with("Rss:")) return std::stoi(line.substr(4));
  }
  return -1;
}

TEST_F(File, WholePagesOfAPartAreGivenBack) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const std::string path = folder_.write("file", std::string(8 * page, 'x'));
  const Mapped file = must(MappedFile::open(path));
  const auto touch = [&] { return text_of(*file) == std::string(8 * page, 'x'); };
  EXPECT_TRUE(touch());
  const int all = resident(path);
  EXPECT_EQ(all, static_cast<int>(8 * page / 1024));
  const std::vector<std::byte> below(4 * page, std::byte{1});
  std::array<std::byte, 16384> above{};
  above.fill(std::byte{1});
  file->release(below);
  file->release(above);
  file->release(file->bytes().subspan(page + 1, page));  // parts of two pages, and no page whole
  const Mapped owned = MappedFile::of_bytes("bytes", below);
  owned->release(owned->bytes());
  owned->release(file->bytes());
  const auto still = [](auto bytes) { return std::ranges::count(bytes, std::byte{1}) == std::ssize(bytes); };
  EXPECT_TRUE(still(std::span(below)) && still(std::span(above)) && still(owned->bytes()));
  EXPECT_EQ(resident(path), all);
  file->release(file->bytes().subspan(page - 1, 3 * page));  // whole: the second, third and fourth but a byte
  EXPECT_EQ(resident(path), all - static_cast<int>(2 * page / 1024));
  EXPECT_TRUE(touch());
}

TEST_F(File, MapsAreKnownByTheirAddresses) {
  const std::string path = folder_.write("file", std::string(100, 'x'));
  Mapped file = must(MappedFile::open(path));
  const std::byte* begin = file->bytes().data();
  EXPECT_STREQ(mapped_path(begin), path.c_str());
  EXPECT_STREQ(mapped_path(begin + 99), path.c_str());
  EXPECT_EQ(mapped_path(begin + 100), nullptr);
  EXPECT_EQ(mapped_path(begin - 1), nullptr);
  const std::string deep = long_path("file");
  std::ofstream(deep) << "abc";
  EXPECT_EQ(mapped_path(must(MappedFile::open(deep))->bytes().data()), nullptr);
  file.reset();
  EXPECT_EQ(mapped_path(begin), nullptr);
  // The first 256 are known, and a place that is given back is taken again.
  std::vector<Mapped> many;
  for (int i = 0; i < 257; ++i) many.push_back(must(MappedFile::open(path)));
  EXPECT_STREQ(mapped_path(many[255]->bytes().data()), path.c_str());
  EXPECT_EQ(mapped_path(many[256]->bytes().data()), nullptr);
  many.erase(many.begin());
  many.push_back(must(MappedFile::open(path)));
  EXPECT_STREQ(mapped_path(many.back()->bytes().data()), path.c_str());
}

// ---- files that appear whole ----

TEST_F(File, WhatIsNotCommittedLeavesNothing) {
  {
    AtomicFile file = must(AtomicFile::create(folder_.file("file")));
    ASSERT_TRUE(file.write("half").ok());
    EXPECT_EQ(file.path(), folder_.file("file"));
    EXPECT_EQ(folder_.entries(), 1U);
    EXPECT_FALSE(std::filesystem::exists(folder_.file("file")));
    const AtomicFile moved = std::move(file);
  }
  EXPECT_EQ(folder_.entries(), 0U);
  EXPECT_EQ(AtomicFile::create(folder_.file("absent/file")).status().message(),
            folder_.file("absent/file") + ": cannot create: No such file or directory");
}

// The mode is what open() would have given, and a name without a folder is one in the current folder.
TEST_F(File, WhatIsCommittedIsThereAsAnyOtherFile) {
  const int here = open(".", O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(chdir(folder_.file("").c_str()), 0);
  const mode_t mask = umask(027);
  AtomicFile file = must(AtomicFile::create("file"));
  umask(mask);
  const bool written = file.reserve(0).ok() && file.write("whole").ok() && file.commit().ok();
  ASSERT_EQ(fchdir(here), 0);
  close(here);
  EXPECT_TRUE(written);
  struct stat info {};
  ASSERT_EQ(stat(folder_.file("file").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640U);
  EXPECT_EQ(must(read_text_file(folder_.file("file"))), "whole");
  EXPECT_EQ(folder_.entries(), 1U);
}

// As a handler of signals does: what is committed stays, what is not goes.
TEST_F(File, TemporaryFilesOfOneWhoMustGoAreRemoved) {
  AtomicFile whole = must(AtomicFile::create(folder_.file("whole")));
  ASSERT_TRUE(whole.write("whole").ok() && whole.commit().ok());
  remove_temporary_files();
  const AtomicFile deep = must(AtomicFile::create(long_path("file")));  // too long to be known
  std::vector<AtomicFile> files;
  for (int i = 0; i < 66; ++i)  // `whole` has one of the 64 places
    files.push_back(must(AtomicFile::create(folder_.file("half" + std::to_string(i)))));
  EXPECT_EQ(folder_.entries(), 68U);
  remove_temporary_files();
  EXPECT_EQ(folder_.entries(), 5U);
  EXPECT_EQ(must(read_text_file(folder_.file("whole"))), "whole");
  EXPECT_EQ(files[0].commit().message(),
            folder_.file("half0") + ": cannot replace: No such file or directory");
  EXPECT_TRUE(files[65].commit().ok());
  files.clear();
  EXPECT_EQ(folder_.entries(), 3U);
}

// ---- texts ----

TEST_F(File, TextsAreReadWhole) {
  std::string text(200000, 'x');
  text[70000] = '\0';
  EXPECT_EQ(must(read_text_file(folder_.write("text", text))), text);
  EXPECT_EQ(must(read_text_file(folder_.write("empty", ""))), "");
  EXPECT_EQ(read_text_file(folder_.file("absent")).status().message(),
            folder_.file("absent") + ": cannot open: No such file or directory");
  std::filesystem::create_directory(folder_.file("folder"));
  EXPECT_EQ(read_text_file(folder_.file("folder")).status().message(),
            folder_.file("folder") + ": cannot read: Is a directory");
}

}  // namespace
}  // namespace kvfold::testing
