// GGUF files made in memory, good ones and broken ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "loaders/gguf.h"

namespace kvfold::testing {

// Bytes written one after another.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    data_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& text(std::string_view text) {
    put<uint64_t>(text.size());
    data_.append(text);
    return *this;
  }
  Bytes& raw(std::string_view bytes) {
    data_.append(bytes);
    return *this;
  }
  const std::string& str() const { return data_; }

 private:
  std::string data_;
};

// Builds a file from parts; every number that the format states can be overruled before build().
class GgufWriter {
 public:
  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  int64_t tensor_count = -1;  // -1: as many as there are
  int64_t entry_count = -1;
  uint64_t alignment = 32;

  template <class T>
  GgufWriter& value(std::string_view key, GgufType type, T value) {
    return entry(key, Bytes().put(static_cast<uint32_t>(type)).put(value).str());
  }
  GgufWriter& u32(std::string_view key, uint32_t v) { return value(key, GgufType::kUint32, v); }
  GgufWriter& f32(std::string_view key, float v) { return value(key, GgufType::kFloat32, v); }
  GgufWriter& boolean(std::string_view key, bool v) {
    return value(key, GgufType::kBool, static_cast<uint8_t>(v));
  }
  GgufWriter& string(std::string_view key, std::string_view v) {
    return entry(key, Bytes().put(static_cast<uint32_t>(GgufType::kString)).text(v).str());
  }
  GgufWriter& strings(std::string_view key, const std::vector<std::string>& list) {
    Bytes bytes;
    bytes.put(static_cast<uint32_t>(GgufType::kArray)).put(static_cast<uint32_t>(GgufType::kString));
    bytes.put<uint64_t>(list.size());
    for (const std::string& s : list) bytes.text(s);
    return entry(key, bytes.str());
  }
  GgufWriter& ints(std::string_view key, const std::vector<int32_t>& list) {
    Bytes bytes;
    bytes.put(static_cast<uint32_t>(GgufType::kArray)).put(static_cast<uint32_t>(GgufType::kInt32));
    bytes.put<uint64_t>(list.size());
    for (const int32_t x : list) bytes.put(x);
    return entry(key, bytes.str());
  }
  // `type_and_value` as it stands behind the key. A key that is there already is replaced.
  GgufWriter& entry(std::string_view key, std::string type_and_value) {
    for (auto& [name, value] : entries_)
      if (name == key) return value = std::move(type_and_value), *this;
    return add_entry(key, std::move(type_and_value));
  }
  GgufWriter& add_entry(std::string_view key, std::string type_and_value) {
    entries_.emplace_back(key, std::move(type_and_value));
    return *this;
  }
  GgufWriter& remove(std::string_view key) {
    std::erase_if(entries_, [&](const auto& e) { return e.first == key; });
    return *this;
  }

  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    uint32_t type = 0;
    std::string data;
    int64_t offset = -1;      // -1: behind the one before, aligned
    int64_t dimensions = -1;  // -1: as many as the shape has
  };
  std::vector<Tensor> tensors;

  std::string build() const {
    Bytes bytes;
    bytes.put(magic).put(version);
    bytes.put(tensor_count < 0 && tensor_count != kMinusOne ? static_cast<uint64_t>(tensors.size())
                                                            : count(tensor_count));
    bytes.put(entry_count < 0 && entry_count != kMinusOne ? static_cast<uint64_t>(entries_.size())
                                                          : count(entry_count));
    for (const auto& [key, value] : entries_) bytes.text(key).raw(value);
    std::string data;
    for (const Tensor& t : tensors) {
      data.resize((data.size() + alignment - 1) / alignment * alignment);
      bytes.text(t.name).put(t.dimensions < 0 ? static_cast<uint32_t>(t.shape.size())
                                              : static_cast<uint32_t>(t.dimensions));
      for (const uint64_t n : t.shape) bytes.put(n);
      bytes.put(t.type).put<uint64_t>(t.offset < 0 ? data.size() : static_cast<uint64_t>(t.offset));
      data += t.data;
    }
    std::string out = bytes.str();
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }

  static constexpr int64_t kMinusOne = INT64_MIN;  // stands for a count of -1 in the file

 private:
  static uint64_t count(int64_t value) {
    return value == kMinusOne ? ~uint64_t{0} : static_cast<uint64_t>(value);
  }
  std::vector<std::pair<std::string, std::string>> entries_;
};

}  // namespace kvfold::testing
