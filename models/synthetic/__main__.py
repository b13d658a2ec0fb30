"""`python -m vl3edge.models.synthetic`: a checkpoint with random weights."""

import sys

from .random import main

if __name__ == "__main__":
    sys.exit(main())
