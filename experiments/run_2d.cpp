// Phase 2d: can a confabulated or creative cache change the mode in which a factual prompt is answered?
//
// The first source states an invented inventor, and its target asks for a real one. The second is a creative
// opening before the same factual target. A marker in the answer is the source's content; an answer that is
// false or fanciful without the source's words would be its mode. This run shows the plan's own cases;
// telling mode from content takes the crossing of sources and entities.
#include "experiments/harness/driver.h"

int main(int argc, char** argv) {
  return kvfold::run_experiment(argc, argv,
                                {"2d", "Can we induce confabulation by transferring confabulation cache?",
                                 "A name from the source is content. An invented answer without the source's "
                                 "words would be mode: read the outputs, "
                                 "and\n"
                                 "the crossing of modes and entities (--family)."});
}
