// Phase 2e: does a cache cross from one model to another?
#include "experiments/harness/crossing.h"

int main(int argc, char** argv) { return kvfold::run_crossing(argc, argv); }
