// A safetensors file of ours (a cache, a projector, a checkpoint of training) taken apart, for changing, and
// put together again with checksums that fit: so a lie is found by what it is and not by its checksum.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace kvfold::testing {

struct SignedFile {
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;
  bool sign_tensors = true;   // metadata 'checksums' is made anew
  bool sign_metadata = true;  // metadata 'checksum' is

  // REQUIRES: a good file.
  static SignedFile parse(const std::string& bytes);
  std::string build() const;

  // Sets element `index` of an F32 tensor.
  void set(const std::string& tensor, size_t index, float value);
};

struct Lie {
  const char* name;
  std::function<void(SignedFile&)> tell;
  std::vector<std::string> words;  // of the message that it is refused with
};

// A metadata key that says something else. The message names the key, and the words.
Lie metadata_lie(const char* name, const char* key, const std::string& value,
                 std::vector<std::string> words = {});

// What is wrong with a message of a refusal: "" where it is one printable line that begins with the file's
// name and has all the words.
std::string wrong_with(const std::string& message, const std::string& path,
                       const std::vector<std::string>& words);

}  // namespace kvfold::testing
