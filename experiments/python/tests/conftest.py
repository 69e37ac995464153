import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import effects  # noqa: E402, F401

gc.freeze()  # statsmodels collects garbage at each adjustment of p: what is loaded by now need not be looked through
