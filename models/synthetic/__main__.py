"""`python -m vl3edge.models.synthetic`: a checkpoint with random weights."""

import sys

from vl3edge.runtime.cli.stderr import exit_status

from .random import main

if __name__ == "__main__":
    sys.exit(exit_status(main))
