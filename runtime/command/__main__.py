"""`python -m vl3edge`: installed as `vl3edge/__main__.py`, the only file of the namespace; see setup.py."""

import sys

from vl3edge.runtime.cli.main import main

sys.exit(main())
