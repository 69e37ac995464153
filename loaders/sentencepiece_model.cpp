#include "loaders/sentencepiece_model.h"

#include <fmt/core.h>

#include <cmath>
#include <cstring>

#include "engine/file.h"
#include "engine/printable.h"
#include "engine/tokenizer/utf8.h"
#include "loaders/limits.h"

namespace kvfold {
namespace {

enum class Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  Wire wire = Wire::kVarint;
  uint64_t value = 0;      // of varints and of fixed-size numbers
  std::string_view bytes;  // of kBytes
  size_t offset = 0;       // in the file
};

// The fields of one message, one after another, every length checked before it is used.
class Message {
 public:
  Message(const std::string& path, std::string_view bytes, size_t offset)
      : path_(path), bytes_(bytes), offset_(offset) {}

  bool done() const { return at_ == bytes_.size(); }

  Result<Field> next() {
    Field field;
    field.offset = offset_ + at_;
    KVFOLD_ASSIGN_OR_RETURN(const uint64_t tag, varint());
    field.wire = static_cast<Wire>(tag & 7);
    if (tag >> 3 == 0 || tag >> 3 > kMostNumber)
      return wrong(field.offset, fmt::format("field number {}", tag >> 3), "1 to 536870911");
    field.number = static_cast<uint32_t>(tag >> 3);
    switch (field.wire) {
      case Wire::kVarint: {
        KVFOLD_ASSIGN_OR_RETURN(field.value, varint());
        return field;
      }
      case Wire::kFixed64:
        return fixed(field, 8);
      case Wire::kFixed32:
        return fixed(field, 4);
      case Wire::kBytes: {
        KVFOLD_ASSIGN_OR_RETURN(const uint64_t size, varint());
        if (size > bytes_.size() - at_)
          return wrong(field.offset, fmt::format("field {} of {} bytes", field.number, size),
                       fmt::format("at most the {} bytes that are left", bytes_.size() - at_));
        field.bytes = bytes_.substr(at_, size);
        at_ += size;
        return field;
      }
    }
    return wrong(field.offset, fmt::format("wire type {}", tag & 7), "0, 1, 2 or 5");
  }

 private:
  static constexpr uint64_t kMostNumber = (1U << 29) - 1;

  Status wrong(size_t offset, const std::string& found, const std::string& expected) const {
    return Status::error(fmt::format("{}: offset {}: found {}, expected {}", path_, offset, found, expected));
  }

  Result<uint64_t> varint() {
    const size_t begin = at_;
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && at_ < bytes_.size(); shift += 7) {
      const auto byte = static_cast<uint8_t>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    return wrong(offset_ + begin, at_ == bytes_.size() ? "a number cut short" : "a number above 64 bits",
                 "a varint");
  }

  Result<Field> fixed(Field field, size_t size) {
    if (size > bytes_.size() - at_)
      return wrong(field.offset, fmt::format("{} bytes", bytes_.size() - at_), fmt::format("{}", size));
    std::memcpy(&field.value, bytes_.data() + at_, size);
    at_ += size;
    return field;
  }

  const std::string& path_;
  std::string_view bytes_;
  size_t offset_;  // of the message in the file
  size_t at_ = 0;
};

class Reader {
 public:
  explicit Reader(std::shared_ptr<const MappedFile> file) : file_(std::move(file)), path_(file_->path()) {}

  Result<SentencePieceModel> read() {
    const std::span<const std::byte> bytes = file_->bytes();
    Message model(path_, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, 0);
    while (!model.done()) {
      KVFOLD_ASSIGN_OR_RETURN(const Field field, model.next());
      if (field.number < 1 || field.number > 3) continue;  // self-test data, a denormaliser, extensions
      if (field.wire != Wire::kBytes)
        return wrong(field, fmt::format("field {} as a number", field.number), "a message");
      KVFOLD_RETURN_IF_ERROR(field.number == 1   ? read_piece(field)
                             : field.number == 2 ? read_trainer(field)
                                                 : read_normalizer(field));
    }
    KVFOLD_RETURN_IF_ERROR(check());
    out_.model = "llama";
    out_.symbols_in_text = true;
    out_.add_bos = out_.bos >= 0;
    return SentencePieceModel{std::move(out_), file_};
  }

 private:
  Status wrong(const Field& field, const std::string& found, const std::string& expected) const {
    return Status::error(
        fmt::format("{}: offset {}: found {}, expected {}", path_, field.offset, found, expected));
  }
  Status refused(const char* key, const std::string& found, const std::string& expected) const {
    return Status::error(fmt::format("{}: {}: found {}, expected {}", path_, key, found, expected));
  }
  Message inner(const Field& field) const {
    const auto* begin = reinterpret_cast<const char*>(file_->bytes().data());
    return {path_, field.bytes, static_cast<size_t>(field.bytes.data() - begin)};
  }

  // SentencePiece: piece = 1, score = 2, type = 3.
  Status read_piece(const Field& from) {
    const size_t index = out_.tokens.size();
    if (index == static_cast<size_t>(kMostWidth))
      return wrong(from, "more pieces", fmt::format("at most {}", kMostWidth));
    std::string_view text;
    float score = 0;
    uint64_t type = 1;
    Message piece = inner(from);
    while (!piece.done()) {
      KVFOLD_ASSIGN_OR_RETURN(const Field field, piece.next());
      if (field.number == 1 && field.wire == Wire::kBytes) {
        text = field.bytes;
      } else if (field.number == 2 && field.wire == Wire::kFixed32) {
        std::memcpy(&score, &field.value, sizeof score);
      } else if (field.number == 3 && field.wire == Wire::kVarint) {
        type = field.value;
      } else if (field.number <= 3) {
        return wrong(field, fmt::format("piece {}: field {} of another wire type", index, field.number),
                     "a text, a score and a type");
      }
    }
    if (text.empty() || utf8_valid_prefix(text) != text.size())
      return wrong(from, fmt::format("piece {}: '{}'", index, printable(text)), "a text in UTF-8");
    if (!std::isfinite(score))
      return wrong(from, fmt::format("piece {}: score {}", index, score), "a number");
    if (type < 1 || type > static_cast<uint64_t>(TokenType::kByte))
      return wrong(from, fmt::format("piece {}: type {}", index, type), "1 to 6");
    out_.tokens.push_back(text);
    out_.scores.push_back(score);
    out_.types.push_back(static_cast<TokenType>(type));
    return {};
  }

  // TrainerSpec, of what its two hundred lines say the part that changes how text is encoded.
  Status read_trainer(const Field& from) {
    Message trainer = inner(from);
    while (!trainer.done()) {
      KVFOLD_ASSIGN_OR_RETURN(const Field field, trainer.next());
      if (field.wire != Wire::kVarint) continue;
      const auto number = static_cast<int64_t>(field.value);
      if (field.number == 3) model_type_ = field.value;
      if (field.number == 24 && number != 0)
        return refused("trainer_spec.treat_whitespace_as_suffix", "true", "false");
      if (field.number == 41) bos_ = number;
      if (field.number == 42) eos_ = number;
      if (field.number == 43) padding_ = number;
    }
    return {};
  }

  Status read_normalizer(const Field& from) {
    Message normalizer = inner(from);
    while (!normalizer.done()) {
      KVFOLD_ASSIGN_OR_RETURN(const Field field, normalizer.next());
      if (field.number == 2 && !field.bytes.empty())
        return refused("normalizer_spec.precompiled_charsmap", fmt::format("{} bytes", field.bytes.size()),
                       "none, the rule 'identity'");
      if (field.wire != Wire::kVarint) continue;
      if (field.number == 3) prefix_ = field.value != 0;
      if (field.number == 4) removes_spaces_ = field.value != 0;
      if (field.number == 5) escapes_ = field.value != 0;
    }
    return {};
  }

  Status check() {
    if (out_.tokens.empty()) return refused("pieces", "none", "at least one");
    if (model_type_ != 2)
      return refused("trainer_spec.model_type", model_type_ == 1 ? "unigram" : fmt::format("{}", model_type_),
                     "2, BPE");
    if (removes_spaces_) return refused("normalizer_spec.remove_extra_whitespaces", "true", "false");
    if (!escapes_) return refused("normalizer_spec.escape_whitespaces", "false", "true");
    out_.space_prefix = prefix_ ? SpacePrefix::kSegment : SpacePrefix::kNone;
    KVFOLD_RETURN_IF_ERROR(special("trainer_spec.bos_id", bos_, out_.bos));
    KVFOLD_RETURN_IF_ERROR(special("trainer_spec.eos_id", eos_, out_.eos));
    KVFOLD_RETURN_IF_ERROR(special("trainer_spec.pad_id", padding_, out_.padding));
    for (size_t i = 0; i < out_.types.size(); ++i)
      if (out_.types[i] == TokenType::kUnknown) out_.unknown = static_cast<TokenId>(i);
    if (out_.unknown < 0) return refused("pieces", "none of type unknown", "one");
    return {};
  }

  Status special(const char* key, int64_t id, TokenId& out) const {
    const auto size = static_cast<int64_t>(out_.tokens.size());
    if (id >= size)
      return refused(key, fmt::format("{}", id), fmt::format("an id up to {}, or -1", size - 1));
    out = id < 0 ? -1 : static_cast<TokenId>(id);
    return {};
  }

  std::shared_ptr<const MappedFile> file_;
  const std::string& path_;
  VocabularySource out_;
  // The defaults of the .proto file.
  uint64_t model_type_ = 1;
  int64_t bos_ = 1, eos_ = 2, padding_ = -1;
  bool prefix_ = true, removes_spaces_ = true, escapes_ = true;
};

}  // namespace

Result<SentencePieceModel> read_sentencepiece_model(const std::string& path) {
  KVFOLD_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  return read_sentencepiece_model(std::move(file));
}

Result<SentencePieceModel> read_sentencepiece_model(std::shared_ptr<const MappedFile> file) {
  return Reader(std::move(file)).read();
}

}  // namespace kvfold
