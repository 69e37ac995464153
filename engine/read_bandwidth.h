// How fast this machine's memory is read: what a decode, which reads all weights once a token, cannot pass.
#pragma once

#include "engine/status.h"

namespace kvfold {

// Bytes a second that `threads` threads read from 400 MB together, in order and asked for ahead. The best of
// several turns, as a neighbour can only slow it down. Errors: no memory, KVFOLD_CPU as for a CPU backend.
Result<double> read_bandwidth(int threads);

}  // namespace kvfold
