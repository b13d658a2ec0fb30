"""Exit status 0 if the server in this container answers; what HEALTHCHECK runs."""

import os
import sys
from urllib.request import urlopen

try:
    with urlopen(f"http://127.0.0.1:{os.environ.get('VL3EDGE_PORT', '8000')}/health", timeout=4) as answer:
        sys.exit(answer.status != 200)
except OSError:
    sys.exit(1)
