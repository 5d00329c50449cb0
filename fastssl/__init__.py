__version__ = "0.0.1"

import sys
from pathlib import Path

# The whole library, whichever part of it is imported first: what a learner can do does not depend on imports.
# The commands load it themselves, so that `--help` answers at once.
if Path((sys.argv or [''])[0]).stem not in ('fastssl_train', 'fastssl_distill', 'fastssl_predict', '-m'): import fastssl.all
