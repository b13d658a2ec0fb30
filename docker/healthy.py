"""Exit status 0 if the server in this container answers, with TLS or without; what HEALTHCHECK runs."""

import os
import ssl
import sys
from http.client import HTTPException
from urllib.request import urlopen

anyone = ssl.create_default_context()  # the certificate is of the name by which others know this machine
anyone.check_hostname = False
anyone.verify_mode = ssl.CERT_NONE
for scheme in ("http", "https"):
    try:
        with urlopen(f"{scheme}://127.0.0.1:{os.environ.get('VL3EDGE_PORT', '8000')}/health", None, 2, context=anyone):
            sys.exit(0)
    except (OSError, HTTPException):
        continue
sys.exit(1)
