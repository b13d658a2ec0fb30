"""The folder from which requests may name files, and nothing outside it: no `..`, no link that leads out."""

from __future__ import annotations

import stat
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from threading import Lock
from urllib.parse import unquote

from ...errors import MediaError
from .uploads import MediaFile, hashed

_KEPT = 4096
_Version = tuple[str, int, int, int]


class MediaRoot:
    """Finds files below one folder. Thread-safe. Files are hashed once, as long as they do not change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._known: OrderedDict[_Version, MediaFile] = OrderedDict()
        self._lock = Lock()

    def find(self, name: str) -> MediaFile:
        """The file of a path relative to the folder, or of a file:// address below it.

        Raises MediaError: the same for what is outside, what is not there, and what is no file.
        """
        missing = MediaError(f"{name}: there is no such file below the server's --media-root")
        path = unquote(name[len("file://") :]) if name.lower().startswith("file://") else name
        if "\0" in path or ".." in PurePosixPath(path).parts:
            raise missing
        try:
            found = (self._folder / path).resolve(strict=True)
            status = found.stat()
        except (OSError, RuntimeError, ValueError) as e:  # also of links without an end, and of names that no file has
            raise missing from e
        if not found.is_relative_to(self._folder) or not stat.S_ISREG(status.st_mode):
            raise missing
        version = (str(found), status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            known = self._known.get(version)
        if known is None:
            known = hashed(found, name)
            with self._lock:
                self._known[version] = known
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return known
