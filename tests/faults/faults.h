// Faults on purpose: the Nth allocation, open, read, ... of this process fails, once or from then on.
//
// faults.cpp defines malloc and the system calls' functions anew, in front of the C library's. Linked into a
// test it is steered by the functions below; preloaded into a program (LD_PRELOAD) by environment variables:
//
//   KVFOLD_FAULT=kind:n:once|on  what fails; counted from where the program asks for SIGBUS, early in main()
//   KVFOLD_FAULT_FIRED=path  a file that is made when something fails, so that one can tell
//   KVFOLD_FAULT_CUT=path  this file is cut to nothing as soon as any file is mapped
#pragma once

#include <cstdint>

namespace kvfold::faults {

enum class Kind { kAllocation, kOpen, kRead, kMap, kWrite, kFlush, kRename, kMost };
inline constexpr const char* kKindNames[] = {"alloc", "open", "read", "mmap", "write", "fsync", "rename"};

// The nth call of a kind from now on fails (n = 1: the next), and those behind it too if `persistent`. With
// `error` it fails with that errno instead of its usual one.
void arm(Kind kind, int64_t n, bool persistent, int error = 0);
// From now on nothing fails. Whether something did.
bool disarm();

// Allocations that are not freed yet, made since the program began.
int64_t live_allocations();

}  // namespace kvfold::faults
