// Which of the faults of plant_faults.py is on: KVFOLD_PLANTED, 0 for none. Apart from the kernels, whose
// every access is recorded.
#include <cstdlib>

extern "C" bool kvfold_planted(int fault);

extern "C" bool kvfold_planted(int fault) {
  static const char* const on = std::getenv("KVFOLD_PLANTED");
  static const int number = on != nullptr ? std::atoi(on) : 0;
  return fault == number;
}
