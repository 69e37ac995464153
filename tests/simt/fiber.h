// A stack to run a function on, and the switch between two of them.
#pragma once

#include <cstddef>

namespace simt {

// A suspended computation. Switching is by hand: nothing runs at the same time as anything else.
class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next switch to this fiber enter `entry`, on an empty stack. `entry` must never return. The
  // stack is made once (with a page below it that faults) and kept; what was suspended on it is forgotten.
  void start(void (*entry)());
  bool started() const { return started_; }
  // Makes the next switch back impossible until start(): its stack holds what nobody will finish. What it did
  // so far happens before whatever acquires `object`.
  void abandon(void* object);

  // Suspends `from`, which runs now, and resumes `to`. ThreadSanitizer is told, and told that this orders
  // nothing.
  static void switch_between(Fiber& from, Fiber& to);

  // As if the computation suspended here had released `object` before it was: see sanitizers.h.
  void release(void* object);

  const std::byte* stack() const { return stack_; }
  static size_t stack_bytes();

  // To be called first by an entry function.
  static void entered();

  // Makes this object stand for the stack that runs now, the program's own.
  void adopt_current();

 private:
  void* stack_pointer_ = nullptr;
  std::byte* stack_ = nullptr;
  // Of use to sanitizers alone.
  [[maybe_unused]] void* sanitizer_fiber_ = nullptr;  // ThreadSanitizer's
  [[maybe_unused]] void* fake_stack_ = nullptr;       // AddressSanitizer's
  [[maybe_unused]] const void* bottom_ = nullptr;     // of an adopted stack, as AddressSanitizer learns it
  [[maybe_unused]] size_t adopted_bytes_ = 0;
  bool started_ = false;
};

}  // namespace simt
