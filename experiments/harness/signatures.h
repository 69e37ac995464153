// Phase 1.5 measured again: what caches of true, false and invented statements look like, with length,
// template and tokens controlled.
#pragma once

namespace kvfold {

// Runs it as a program. Exit status: 0, or 2 with one line on stderr.
int run_signatures(int argc, char** argv);

}  // namespace kvfold
