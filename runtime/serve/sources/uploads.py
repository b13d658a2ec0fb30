"""Files that clients sent: in a folder of their own, which goes with the server, each known by an id nobody can guess.

A server that was killed leaves its folder; the next one that starts removes it, as nobody holds its lock any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import MediaError
from ..api_error import ApiError

_PREFIX = "vl3edge-serve-"
_PIECE = 1 << 20


@dataclass(frozen=True)
class MediaFile:
    """A file of media on this machine. digest: of its content. name: what its owner calls it, for messages."""

    path: Path
    name: str
    digest: str
    num_bytes: int


@dataclass(frozen=True)
class StoredFile:
    """An upload. created_s, expires_s: in seconds since 1970."""

    id: str
    media: MediaFile
    purpose: str
    created_s: float
    expires_s: float


class Uploads:
    """The files of one server. Thread-safe.

    on_gone: is told the digest of a file that was deleted, once no other file has it.
    """

    def __init__(self, most_bytes: int, keep_s: float, on_gone: Callable[[str], None] = lambda digest: None) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = (self._folder / "lock").open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._most_bytes = most_bytes
        self._keep_s = keep_s
        self._on_gone = on_gone
        self._files: dict[str, StoredFile] = {}
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(file.media.num_bytes for file in self._files.values())

    def add(self, source: BinaryIO, name: str, purpose: str) -> StoredFile:
        """Stores what can be read from `source`. Raises ApiError when there is no room for it."""
        self.expire()
        path = self._new_path()
        try:
            digest, size = hashlib.sha256(), 0
            room = self._most_bytes - self.num_bytes
            with path.open("wb") as target:
                while piece := source.read(_PIECE):
                    size += len(piece)
                    if size > room:
                        raise ApiError(507, "the server has no room for more uploads: delete some", "server_error")
                    digest.update(piece)
                    target.write(piece)
            if size == 0:
                raise ApiError(400, "the file is empty")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        now = time.time()
        media = MediaFile(path, name, digest.hexdigest(), size)
        file = StoredFile(f"file-{secrets.token_urlsafe(18)}", media, purpose, now, now + self._keep_s)
        with self._lock:
            self._files[file.id] = file
        return file

    def get(self, file_id: str) -> StoredFile:
        """Raises ApiError for an id that there is not, or not any more."""
        self.expire()
        with self._lock:
            file = self._files.get(file_id)
        if file is None:
            raise ApiError(404, "there is no such file: it was deleted, has expired, or never was", code="no_such_file")
        return file

    def remove(self, file_id: str) -> None:
        """Deletes a file. Raises ApiError as `get` does."""
        with self._lock:
            file = self._files.pop(file_id, None)
            rest = {other.media.digest for other in self._files.values()}
        if file is None:
            raise ApiError(404, "there is no such file", code="no_such_file")
        file.media.path.unlink(missing_ok=True)
        if file.media.digest not in rest:
            self._on_gone(file.media.digest)

    def expire(self) -> None:
        """Deletes what has been kept long enough."""
        now = time.time()
        with self._lock:
            old = [file.id for file in self._files.values() if file.expires_s <= now]
        for file_id in old:
            with contextlib.suppress(ApiError):  # another thread was quicker
                self.remove(file_id)

    @contextlib.contextmanager
    def passing(self, data: bytes, name: str) -> Iterator[MediaFile]:
        """A file that is there inside `with` alone."""
        path = self._new_path()
        try:
            path.write_bytes(data)
            yield MediaFile(path, name, hashlib.sha256(data).hexdigest(), len(data))
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Deletes everything."""
        with self._lock:
            self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._held.close()

    def _new_path(self) -> Path:
        return self._folder / secrets.token_hex(16)


def hashed(path: Path, name: str) -> MediaFile:
    """A file on this machine, read once for its digest. Raises MediaError."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as e:
        raise MediaError(f"{name}: {e.strerror}") from e
    return MediaFile(path, name, digest.hexdigest(), size)


def _sweep(parent: Path) -> None:
    """Removes the folders of servers that are no more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
