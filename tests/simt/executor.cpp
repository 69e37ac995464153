#include "tests/simt/executor.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "tests/simt/device_code.h"
#include "tests/simt/fiber.h"
#include "tests/simt/sanitizers.h"
#include "tests/simt/shared_variables.h"

namespace simt {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;

enum class State : uint8_t { kRunnable, kMeeting, kBarrier, kDone };

struct Thread {
  Fiber fiber;
  uint3 index;
  int id;    // in the block
  int lane;  // in the warp
  State state;
  bool in_kernel;
  // What it waits for.
  Meeting meeting;
  uint32_t mask;
  int source_lane;
  uint64_t value;
  Site site;
  uint64_t result;
  void* met_at;       // orders it after those that it met, for ThreadSanitizer
  uint32_t meetings;  // that it was the lowest lane of
};

// A range of `order_` in which the threads of one warp stand.
struct Warp {
  int begin, end;
  int number;
};

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Without memset, which sanitizers take for an access of the program.
SIMT_UNSANITIZED void fill_with_ones(std::byte* to, size_t bytes) {
#if defined(__x86_64__)
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0xFF) : "memory");
#else
  for (volatile std::byte* p = to; bytes > 0; --bytes) *p++ = std::byte{0xFF};
#endif
}

class Executor {
 public:
  Executor();
  bool run_grid(const Launch& launch);
  uint64_t meet(Meeting meeting, uint32_t mask, uint64_t value, int source_lane, const Site& site);
  int block_barrier(bool predicate, const Site& site);
  void report(const std::string& fault);
  void report_at(const std::string& fault, const Thread& thread, const Site& site);
  void report_at(const std::string& fault, const Thread& thread, const std::string& place);
  bool faulted() const { return faulted_; }
  // The running thread goes no further. REQUIRES: a fault was reported.
  [[noreturn]] void stop();
  Thread* current() { return current_; }
  std::byte* dynamic_shared() { return dynamic_shared_; }

  Order order = Order::kForward;
  uint64_t seed = 1;
  Observer* observer = nullptr;
  std::vector<std::string> reports;
  std::array<Thread, kMaxThreads> threads;

 private:
  static void fiber_entry();
  void run_threads();
  void start_block(uint32_t block);
  void finish_launch();
  void arrange();
  void wait();
  void begin_thread(Thread& thread);
  Thread* next_thread();
  bool complete_meetings(const Warp& warp);
  bool complete_meeting(const Warp& warp, const Thread& first);
  void check_shuffle(const Thread& thread, uint32_t lanes);
  bool release_barrier();
  void report_absent_lanes(const Warp& warp, const Thread& thread);
  bool report_stuck();
  void order_lanes(const Warp& warp, uint32_t lanes);

  const Launch* launch_ = nullptr;
  int thread_count_ = 0;
  int done_count_ = 0;
  int predicate_count_ = 0;
  int predicate_result_ = 0;
  unsigned barriers_ = 0;  // that were passed
  std::array<Thread*, kMaxThreads> order_{};
  std::array<Warp, kMaxThreads / kWarp> warps_{};
  int warp_count_ = 0;
  int warp_ = 0;    // that runs now: an index into warps_
  int cursor_ = 0;  // of order_
  Thread* current_ = nullptr;
  Fiber program_;
  std::byte* dynamic_shared_ = nullptr;
  bool faulted_ = false;
  std::mt19937_64 random_;
  // Addresses that stand for what orders threads, for ThreadSanitizer.
  char launch_object_ = 0, done_object_ = 0;
  // Two by turns: a thread may come to the next barrier before another has left this one.
  std::array<char, 2> barrier_objects_{};
  [[maybe_unused]] std::array<std::array<char, kMaxThreads>, 4> meeting_objects_{};
};

Executor& executor() {
  static Executor instance;
  return instance;
}

Executor::Executor() {
  for (int id = 0; id < kMaxThreads; ++id) {
    threads[id].id = id;
    threads[id].lane = id % kWarp;
  }
  const char* wish = std::getenv("SIMT_ORDER");
  const std::string text = wish != nullptr ? wish : "forward";
  if (text == "reverse") {
    order = Order::kReverse;
  } else if (text.rfind("shuffled", 0) == 0) {
    order = Order::kShuffled;
    if (text.size() > 9) seed = std::strtoull(text.c_str() + 9, nullptr, 10);
  } else if (text != "forward") {
    std::fprintf(stderr, "SIMT_ORDER: found %s, expected forward, reverse or shuffled:SEED\n", text.c_str());
    std::exit(2);
  }
}

void Executor::report_at(const std::string& fault, const Thread& thread, const Site& site) {
  std::string place = site.file;
  place += ':';
  place += std::to_string(site.line);
  report_at(fault, thread, place);
}

void Executor::report_at(const std::string& fault, const Thread& thread, const std::string& place) {
  if (faulted_) return;  // the first fault says why; what follows from it does not
  const uint3& b = block_index;
  char who[192];
  std::snprintf(who, sizeof who, ": kernel %.64s, block (%u,%u,%u), thread %d (warp %d lane %d), ",
                launch_->kernel, b.x, b.y, b.z, thread.id, thread.id / kWarp, thread.lane);
  reports.push_back("simt: " + fault + who + place);
  std::fprintf(stderr, "%s\n", reports.back().c_str());
  faulted_ = true;
}

void Executor::report(const std::string& fault) {
  std::string line = "simt: " + fault;
  if (launch_ != nullptr) line += std::string(": kernel ") + launch_->kernel;
  if (current_ != nullptr) {
    const uint3& b = block_index;
    char place[96];
    std::snprintf(place, sizeof place, ", block (%u,%u,%u), thread %d", b.x, b.y, b.z, current_->id);
    line += place;
  }
  reports.push_back(line);
  std::fprintf(stderr, "%s\n", line.c_str());
  faulted_ = true;
}

// ---- the life of a block ----

SIMT_UNSANITIZED void Executor::fiber_entry() {
  Fiber::entered();
  Executor& self = executor();
  for (;;) {
    sanitizer_acquire(&self.launch_object_);
    self.launch_->body();
    sanitizer_release(&self.done_object_);
    self.current_->in_kernel = false;
    self.current_->state = State::kDone;
    ++self.done_count_;
    self.wait();
  }
}

// Threads in the order in which they are to be picked, the threads of a warp side by side.
void Executor::arrange() {
  warp_count_ = (thread_count_ + kWarp - 1) / kWarp;
  std::array<int, kMaxThreads / kWarp> numbers{};
  for (int w = 0; w < warp_count_; ++w) numbers[w] = order == Order::kReverse ? warp_count_ - 1 - w : w;
  if (order == Order::kShuffled) std::shuffle(numbers.begin(), numbers.begin() + warp_count_, random_);
  int at = 0;
  for (int w = 0; w < warp_count_; ++w) {
    const int first = numbers[w] * kWarp;
    const int count = std::min(kWarp, thread_count_ - first);
    warps_[w] = {at, at + count, numbers[w]};
    for (int lane = 0; lane < count; ++lane) order_[at + lane] = &threads[first + lane];
    if (order == Order::kReverse) std::reverse(order_.begin() + at, order_.begin() + at + count);
    if (order == Order::kShuffled) std::shuffle(order_.begin() + at, order_.begin() + at + count, random_);
    at += count;
  }
  warp_ = 0;
  cursor_ = 0;
}

void Executor::start_block(uint32_t block) {
  const dim3& grid = launch_->grid;
  const dim3& size = launch_->block;
  block_index = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
  done_count_ = 0;
  predicate_count_ = 0;
  for (int id = 0; id < thread_count_; ++id) {
    const unsigned n = id;
    threads[id].index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    threads[id].state = State::kRunnable;
    threads[id].in_kernel = false;
    if (!threads[id].fiber.started()) threads[id].fiber.start(fiber_entry);
  }
  for (const MemoryRange& variable : shared_variables(launch_->function)) {
    fill_with_ones(variable.begin, variable.bytes);
  }
  fill_with_ones(dynamic_shared_, launch_->shared_bytes);
  if (observer != nullptr) observer->block_begins(block, dynamic_shared_, launch_->shared_bytes);
}

SIMT_UNSANITIZED void Executor::run_threads() {
  sanitizer_release(&launch_object_);
  current_ = next_thread();
  if (current_ != nullptr) {
    begin_thread(*current_);
    Fiber::switch_between(program_, current_->fiber);
  }
  current_ = nullptr;
  in_kernel = false;
  sanitizer_acquire(&done_object_);
}

bool Executor::run_grid(const Launch& launch) {
  if (launch_ != nullptr) {
    std::fprintf(stderr, "simt: a kernel launches %s: there is no dynamic parallelism\n", launch.kernel);
    std::abort();
  }
  launch_ = &launch;
  faulted_ = false;
  thread_count_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block_size = launch.block;
  grid_size = launch.grid;
  random_.seed(seed);
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, std::max<size_t>(launch.shared_bytes, 1)) != 0) std::abort();
  dynamic_shared_ = static_cast<std::byte*>(memory);
  program_.adopt_current();
  if (observer != nullptr) observer->launch_begins(launch);
  const uint32_t blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  std::vector<uint32_t> shuffled;
  if (order == Order::kShuffled) {
    for (uint32_t block = 0; block < blocks; ++block) shuffled.push_back(block);
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
  }
  for (uint32_t i = 0; i < blocks && !faulted_; ++i) {
    if (i == 0 || order == Order::kShuffled) arrange();
    start_block(order == Order::kForward ? i : order == Order::kReverse ? blocks - 1 - i : shuffled[i]);
    warp_ = 0;
    cursor_ = 0;
    run_threads();
  }
  finish_launch();
  return !faulted_;
}

void Executor::finish_launch() {
  if (observer != nullptr) observer->launch_ends();
  if (faulted_) {
    for (int id = 0; id < thread_count_; ++id) threads[id].fiber.abandon(&done_object_);
    sanitizer_acquire(&done_object_);
  }
  std::free(dynamic_shared_);
  dynamic_shared_ = nullptr;
  launch_ = nullptr;
}

// ---- choosing who runs ----

// What is about to be switched to.
SIMT_UNSANITIZED void Executor::begin_thread(Thread& thread) {
  current_ = &thread;
  thread_index = thread.index;
  in_kernel = thread.in_kernel;
  if (observer != nullptr) observer->thread_resumes(thread.id);
}

// The running thread has to wait (or is done): resumes whoever is next, the program when nobody is.
SIMT_UNSANITIZED void Executor::wait() {
  Thread* self = current_;
  Thread* next = faulted_ ? nullptr : next_thread();
  if (next == self) return;
  if (next == nullptr) {
    Fiber::switch_between(self->fiber, program_);
  } else {
    begin_thread(*next);
    Fiber::switch_between(self->fiber, next->fiber);
  }
}

SIMT_UNSANITIZED void Executor::stop() {
  for (;;) wait();
}

// Runs a warp until all of its threads wait for something that only other warps can bring, then the next
// warp.
SIMT_UNSANITIZED Thread* Executor::next_thread() {
  for (;;) {
    const Warp& warp = warps_[warp_];
    while (cursor_ < warp.end) {
      Thread* thread = order_[cursor_++];
      if (thread->state == State::kRunnable) return thread;
    }
    if (complete_meetings(warp)) {
      cursor_ = warp.begin;
    } else if (faulted_) {
      return nullptr;
    } else if (++warp_ < warp_count_) {
      cursor_ = warps_[warp_].begin;
    } else {
      if (done_count_ == thread_count_ || !release_barrier()) return nullptr;
      warp_ = 0;
      cursor_ = warps_[0].begin;
    }
  }
}

// ---- meetings of lanes ----

bool Executor::complete_meetings(const Warp& warp) {
  bool any = false;
  for (int i = warp.begin; i < warp.end && !faulted_; ++i) {
    if (order_[i]->state == State::kMeeting) any |= complete_meeting(warp, *order_[i]);
  }
  return any && !faulted_;
}

// Releases the lanes that meet `first`, when all that its mask names are there.
bool Executor::complete_meeting(const Warp& warp, const Thread& first) {
  Thread* lanes = &threads[warp.number * kWarp];
  const int count = warp.end - warp.begin;
  const uint32_t existing = count == kWarp ? ~0U : (1U << count) - 1;
  uint32_t present = 0;
  for (int lane = 0; lane < count; ++lane) {
    const Thread& t = lanes[lane];
    if (t.state == State::kMeeting && t.mask == first.mask && t.meeting == first.meeting &&
        same_site(t.site, first.site)) {
      present |= 1U << lane;
    }
  }
  const uint32_t wanted = first.mask & existing;
  if ((present & wanted) != wanted) return false;
  const Meeting meeting = first.meeting;
  uint64_t ballot = 0;
  std::array<uint64_t, kWarp> values{};
  for (int lane = 0; lane < count; ++lane) {
    values[lane] = lanes[lane].value;
    if ((wanted >> lane & 1U) != 0 && values[lane] != 0) ballot |= uint64_t{1} << lane;
  }
  for (int lane = 0; lane < count; ++lane) {
    if ((wanted >> lane & 1U) == 0) continue;
    Thread& t = lanes[lane];
    t.state = State::kRunnable;
    t.result = meeting == Meeting::kBallot ? ballot : 0;
    if (meeting == Meeting::kShuffle) {
      check_shuffle(t, wanted);
      t.result = values[t.source_lane];
    }
    for (int other = 0; meeting == Meeting::kMatch && other < count; ++other) {
      if ((wanted >> other & 1U) != 0 && values[other] == t.value) t.result |= uint64_t{1} << other;
    }
  }
  if (meeting == Meeting::kSync) order_lanes(warp, wanted);
  return true;
}

void Executor::check_shuffle(const Thread& thread, uint32_t lanes) {
  if ((lanes >> thread.source_lane & 1U) != 0) return;
  char fault[96];
  std::snprintf(fault, sizeof fault, "shuffle reads lane %d, which is not in the mask %08x",
                thread.source_lane, thread.mask);
  report_at(fault, thread, thread.site);
}

// Of a __syncwarp alone: shuffles and votes bring lanes together but, as the CUDA C++ Programming Guide has
// it, "do not guarantee any memory ordering".
//
// Lanes that meet share the lowest lane of their mask, and disjoint groups do not. By turns, because a lane
// may come to its next meeting before another has left this one.
void Executor::order_lanes(const Warp& warp, uint32_t lanes) {
  if (observer != nullptr) observer->warp_barrier(warp.number, lanes);
#if defined(SIMT_TSAN)
  const int first = warp.number * kWarp;
  Thread& lowest = threads[first + __builtin_ctz(lanes)];
  void* object = &meeting_objects_[lowest.meetings++ % meeting_objects_.size()][lowest.id];
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& thread = threads[first + __builtin_ctz(rest)];
    thread.met_at = object;
    thread.fiber.release(object);
  }
#endif
}

SIMT_UNSANITIZED uint64_t Executor::meet(Meeting meeting, uint32_t mask, uint64_t value, int source_lane,
                                         const Site& site) {
  Thread& self = *current_;
  self.meeting = meeting;
  self.mask = mask;
  self.value = value;
  self.source_lane = source_lane;
  self.site = site;
  if ((mask >> self.lane & 1U) == 0) {
    char fault[96];
    std::snprintf(fault, sizeof fault, "%s with the mask %08x, in which the caller's own lane is not",
                  meeting_name(meeting), mask);
    report_at(fault, self, site);
    stop();
  }
  self.state = State::kMeeting;
  wait();
  if (meeting == Meeting::kSync) sanitizer_acquire(self.met_at);
  return self.result;
}

// ---- barriers of the block ----

SIMT_UNSANITIZED int Executor::block_barrier(bool predicate, const Site& site) {
  Thread& self = *current_;
  self.site = site;
  self.state = State::kBarrier;
  predicate_count_ += predicate ? 1 : 0;
  char* const object = &barrier_objects_[barriers_ % 2];
  sanitizer_release(object);
  wait();
  sanitizer_acquire(object);
  return predicate_result_;
}

// Nobody can run. Lets all threads pass the barrier if they are all there; reports what they wait for if not.
bool Executor::release_barrier() {
  if (report_stuck()) return false;
  for (int id = 0; id < thread_count_; ++id) threads[id].state = State::kRunnable;
  predicate_result_ = predicate_count_;
  predicate_count_ = 0;
  ++barriers_;
  if (observer != nullptr) observer->block_barrier();
  if (order == Order::kShuffled) arrange();
  return true;
}

bool Executor::report_stuck() {
  const Thread* at_barrier = nullptr;
  const Thread* done = nullptr;
  for (int w = 0; w < warp_count_; ++w) {
    for (int i = warps_[w].begin; i < warps_[w].end; ++i) {
      const Thread& thread = *order_[i];
      if (thread.state == State::kMeeting) {
        report_absent_lanes(warps_[w], thread);
        return true;
      }
      if (thread.state == State::kDone) done = &thread;
      if (thread.state == State::kBarrier && at_barrier == nullptr) at_barrier = &thread;
    }
  }
  char fault[256];
  for (int id = 0; id < thread_count_; ++id) {
    const Thread& thread = threads[id];
    if (thread.state != State::kBarrier || same_site(thread.site, at_barrier->site)) continue;
    std::snprintf(fault, sizeof fault, "divergent __syncthreads: thread %d waits at line %u instead",
                  thread.id, thread.site.line);
    report_at(fault, *at_barrier, at_barrier->site);
    return true;
  }
  if (done == nullptr) return false;
  std::snprintf(fault, sizeof fault,
                "divergent __syncthreads: %d of %d threads have returned, thread %d among them", done_count_,
                thread_count_, done->id);
  report_at(fault, *at_barrier, at_barrier->site);
  return true;
}

void Executor::report_absent_lanes(const Warp& warp, const Thread& thread) {
  std::string absent;
  for (int id = warp.number * kWarp; id < warp.number * kWarp + warp.end - warp.begin; ++id) {
    const Thread& other = threads[id];
    const bool named = (thread.mask >> other.lane & 1U) != 0;
    const bool meets = other.state == State::kMeeting && other.mask == thread.mask &&
                       other.meeting == thread.meeting && same_site(other.site, thread.site);
    if (!named || meets) continue;
    char text[160];
    if (other.state == State::kDone) {
      std::snprintf(text, sizeof text, "has returned");
    } else if (other.state == State::kBarrier) {
      std::snprintf(text, sizeof text, "waits in __syncthreads at line %u", other.site.line);
    } else {
      std::snprintf(text, sizeof text, "waits in %s at line %u with the mask %08x",
                    meeting_name(other.meeting), other.site.line, other.mask);
    }
    absent = "; lane " + std::to_string(other.lane) + " " + text;
    break;
  }
  char fault[96];
  std::snprintf(fault, sizeof fault, "%s deadlocks: lanes of the mask %08x never come",
                meeting_name(thread.meeting), thread.mask);
  report_at(fault + absent, thread, thread.site);
}

}  // namespace

// ---- the interface of hosts ----

void set_order(Order order, uint64_t seed) {
  executor().order = order;
  executor().seed = seed;
}
bool run_grid(const Launch& launch) { return executor().run_grid(launch); }
std::vector<std::string> take_reports() { return std::exchange(executor().reports, {}); }
void report(const std::string& fault) { executor().report(fault); }
void report_in_thread(const std::string& fault, const std::string& place) {
  executor().report_at(fault, *executor().current(), place);
}
bool has_faulted() { return executor().faulted(); }
void set_observer(Observer* observer) { executor().observer = observer; }

MemoryRange thread_stack(int thread) {
  return {const_cast<std::byte*>(executor().threads[thread].fiber.stack()), Fiber::stack_bytes()};
}

// ---- the interface of kernels ----

const char* meeting_name(Meeting meeting) {
  constexpr std::array kNames = {"__syncwarp", "shuffle", "vote", "match"};
  return kNames[static_cast<size_t>(meeting)];
}

SIMT_UNSANITIZED int lane_of_current_thread() { return executor().current()->lane; }
SIMT_UNSANITIZED std::byte* dynamic_shared_memory() { return executor().dynamic_shared(); }

SIMT_UNSANITIZED uint64_t meet(Meeting meeting, uint32_t mask, uint64_t value, int source_lane,
                               const Site& site) {
  return executor().meet(meeting, mask, value, source_lane, site);
}

SIMT_UNSANITIZED int block_barrier(bool predicate, const Site& site) {
  return executor().block_barrier(predicate, site);
}

SIMT_UNSANITIZED void atomic_access(const void* address, size_t bytes, bool writes, const Site& site) {
  check_alignment(address, bytes, site);
  if (executor().observer != nullptr) executor().observer->atomic(address, bytes, writes);
}

SIMT_UNSANITIZED void enter_kernel() { in_kernel = executor().current()->in_kernel = true; }
SIMT_UNSANITIZED void leave_kernel() { in_kernel = executor().current()->in_kernel = false; }

SIMT_UNSANITIZED void check_alignment(const void* address, size_t bytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  char fault[96];
  std::snprintf(fault, sizeof fault, "misaligned access of %zu bytes at %p", bytes, address);
  executor().report_at(fault, *executor().current(), site);
  executor().stop();
}

void trap(const Site& site) {
  executor().report_at("trap", *executor().current(), site);
  executor().stop();
}

}  // namespace simt
