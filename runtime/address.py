"""Whether a name on the command line or in a record is an address of something elsewhere, or a file here."""

from __future__ import annotations

import os
import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(name: str) -> bool:
    """Whether `name` begins as an address does (http://, rtsp://, …) and is not the name of a file here.

    A colon alone makes no address: `2024-01-01T12:30:00.mp4` and `concat:x.mp4` are names of files.
    """
    return _SCHEME.match(name) is not None and not os.path.lexists(name)
