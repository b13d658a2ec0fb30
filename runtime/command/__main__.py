"""`python -m vl3edge`: installed as `vl3edge/__main__.py`, see pyproject.toml. `vl3edge` is a namespace without code."""

import sys

from vl3edge.runtime.cli import main

sys.exit(main())
