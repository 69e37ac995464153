// Phase 1.5 again: do true, false and invented statements leave different caches, once length and tokens are
// controlled?
#include "experiments/harness/signatures.h"

int main(int argc, char** argv) { return kvfold::run_signatures(argc, argv); }
