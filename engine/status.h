// Status and Result: how library code reports what went wrong with a file, an argument or a resource.
//
// Library code never prints and never exits. A failure carries one line, made for the person at the terminal:
// which file, at which offset or key, what was found, what was expected. Broken invariants of our own code
// are not errors but bugs, and stop the program through KVFOLD_CHECK.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

namespace kvfold {

// Success, or a one-line message. An empty message means success.
class [[nodiscard]] Status {
 public:
  Status() = default;
  static Status error(std::string message) {
    Status s;
    s.message_ = message.empty() ? "unknown error" : std::move(message);
    return s;
  }
  bool ok() const { return message_.empty(); }
  const std::string& message() const { return message_; }
  // The same failure with `prefix` before it ("file.gguf: ..."); success stays success.
  Status with_prefix(const std::string& prefix) const { return ok() ? *this : error(prefix + message_); }

 private:
  std::string message_;
};

// A value, or the Status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    if (status_.ok()) status_ = Status::error("Result made from a success without a value");
  }
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  // REQUIRES: ok().
  T& value() { return *value_; }
  const T& value() const { return *value_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace kvfold

#define KVFOLD_CONCAT_INNER(a, b) a##b
#define KVFOLD_CONCAT(a, b) KVFOLD_CONCAT_INNER(a, b)

// Returns from the enclosing function when `expr` (a Status) is a failure.
#define KVFOLD_RETURN_IF_ERROR(expr)                                                        \
  do {                                                                                      \
    if (::kvfold::Status kvfold_status = (expr); !kvfold_status.ok()) return kvfold_status; \
  } while (false)

// KVFOLD_ASSIGN_OR_RETURN(auto x, make_x()): x is the value, or the enclosing function returns the failure.
#define KVFOLD_ASSIGN_OR_RETURN(lhs, expr) \
  KVFOLD_ASSIGN_OR_RETURN_IMPL(KVFOLD_CONCAT(result_, __LINE__), lhs, expr)
#define KVFOLD_ASSIGN_OR_RETURN_IMPL(result, lhs, expr) \
  auto result = (expr);                                 \
  if (!result.ok()) return result.status();             \
  lhs = std::move(result.value())

// Stops the program: an invariant of this code base does not hold, whatever the input was.
#define KVFOLD_CHECK(condition)                                                              \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      std::fprintf(stderr, "%s:%d: invariant broken: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)
