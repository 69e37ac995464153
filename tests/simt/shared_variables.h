// Where a kernel's __shared__ variables are. They are local static variables on the host, and the program's
// symbol table says which ones belong to which function, templates and all: a variable of _ZN1k... is called
// _ZZN1k...E<its name>. (A section of their own would not do: GCC 12 drops the section attribute within
// templates.)
#pragma once

#include <vector>

#include "tests/simt/executor.h"

namespace simt {

// Those of a kernel, by its address; none for null. Ends the program when it has no symbol table.
const std::vector<MemoryRange>& shared_variables(const void* kernel);

}  // namespace simt
