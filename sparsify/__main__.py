"""`python -m sparsify`."""

import sys
from pathlib import Path

# `-m` puts the working directory before all else: a folder `passes` there would be taken for ours.
if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd() != Path(__file__).parents[1]:
    del sys.path[0]

from sparsify.cli import main

main()
