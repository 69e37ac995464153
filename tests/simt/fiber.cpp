#include "tests/simt/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "tests/simt/sanitizers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {
namespace {

// Sanitizers make frames several times as large.
#if defined(SIMT_TSAN) || defined(SIMT_ASAN)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

#if defined(SIMT_TSAN)
constexpr unsigned kNoSynchronisation = 1;  // __tsan_switch_to_fiber_no_sync
#endif

std::byte* make_stack() {
  const size_t page = sysconf(_SC_PAGESIZE);
  void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) std::abort();
  return static_cast<std::byte*>(memory) + page;
}

}  // namespace

size_t Fiber::stack_bytes() { return kStackBytes; }

Fiber::~Fiber() {
#if defined(SIMT_TSAN)
  if (stack_ != nullptr && sanitizer_fiber_ != nullptr) __tsan_destroy_fiber(sanitizer_fiber_);
#endif
  const size_t page = sysconf(_SC_PAGESIZE);
  if (stack_ != nullptr) munmap(stack_ - page, kStackBytes + page);
}

#if defined(__x86_64__)

// simt_switch(void** from, void* to): saves what the System V ABI lets a function rely on across a call,
// leaves the stack pointer in *from and goes on where the stack `to` was left. The control words of the
// floating-point units are the same everywhere.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace {

void* first_frame(std::byte* stack, void (*entry)()) {
  // As if `entry` had just been called: the stack pointer is 8 past a multiple of 16, at the address to
  // return to.
  auto* top = reinterpret_cast<uintptr_t*>(stack + kStackBytes);
  top[-1] = 0;
  top[-2] = reinterpret_cast<uintptr_t>(entry);
  for (int saved = 3; saved <= 8; ++saved) top[-saved] = 0;
  return top - 8;
}

void switch_stacks(void** from, void* to) { simt_switch(from, to); }

}  // namespace

#else

namespace {

void* first_frame(std::byte* stack, void (*entry)()) {
  auto* context = new ucontext_t;  // lives as long as the fiber's stack, which is as long as the program
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void switch_stacks(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

}  // namespace

#endif

void Fiber::start(void (*entry)()) {
  if (stack_ == nullptr) stack_ = make_stack();
  stack_pointer_ = first_frame(stack_, entry);
  started_ = true;
#if defined(SIMT_TSAN)
  if (sanitizer_fiber_ == nullptr) sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
}

SIMT_UNSANITIZED void Fiber::release([[maybe_unused]] void* object) {
#if defined(SIMT_TSAN)
  void* current = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_fiber_, kNoSynchronisation);
  __tsan_release(object);
  __tsan_switch_to_fiber(current, kNoSynchronisation);
#endif
}

SIMT_UNSANITIZED void Fiber::abandon(void* object) {
  release(object);
  started_ = false;
#if defined(SIMT_TSAN)
  __tsan_destroy_fiber(sanitizer_fiber_);
  sanitizer_fiber_ = nullptr;
#endif
}

void Fiber::adopt_current() {
#if defined(SIMT_TSAN)
  sanitizer_fiber_ = __tsan_get_current_fiber();
#endif
#if defined(SIMT_ASAN)
  pthread_attr_t attributes;
  void* bottom = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) std::abort();
  pthread_attr_getstack(&attributes, &bottom, &adopted_bytes_);
  pthread_attr_destroy(&attributes);
  bottom_ = bottom;
#endif
}

void Fiber::entered() {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

SIMT_UNSANITIZED void Fiber::switch_between(Fiber& from, Fiber& to) {
#if defined(SIMT_ASAN)
  const void* bottom = to.stack_ != nullptr ? to.stack_ : to.bottom_;
  __sanitizer_start_switch_fiber(&from.fake_stack_, bottom,
                                 to.stack_ != nullptr ? kStackBytes : to.adopted_bytes_);
#endif
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(to.sanitizer_fiber_, kNoSynchronisation);
#endif
  switch_stacks(&from.stack_pointer_, to.stack_pointer_);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace simt
