"""Files that survive interruption: appended to or replaced atomically, and on disk when the call returns.

One process at a time writes such a file. The lock is the kernel's (flock) on the file itself, so it ends with the
process that holds it, however that dies, and leaves no litter. A replacement is locked before it takes the file's name:
at no moment is there an unlocked file of that name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import OutputError, Vl3EdgeError

if sys.platform != "win32":
    import fcntl

Content = bytes | memoryview


class LockedFile:
    """A file this process alone writes; a device or a pipe is written as it is, without lock.

    discard: whether what it holds is to go, which happens with the first `append` and not before.
    Raises OutputError if another process writes it, OSError if it cannot be opened.
    """

    def __init__(self, path: Path, discard: bool = False) -> None:
        self.path = Path(os.path.realpath(path))  # a link is followed, and stays
        self._discard = discard
        self._fd = _open_locked(self.path)
        self.is_regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if self.is_regular and not self.size:
            _sync_folder(self.path)  # a new file's name must survive a power cut, too

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size if self.is_regular else 0

    def lines(self) -> Iterator[bytes]:
        """The complete lines, each with its line end; a truncated last line is left out."""
        if self._discard:
            return
        with self.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def append(self, data: bytes) -> None:
        """Adds data at the end, all of it or nothing. Raises OSError, with the file's name."""
        if self._discard:
            self.truncate(0)
            self._discard = False
        size = self.size
        try:
            _write(self._fd, data)
            if self.is_regular:
                os.fsync(self._fd)
        except OSError as e:
            if self.is_regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, size)
            e.filename = str(self.path)
            raise

    def truncate(self, size: int) -> None:
        """Leaves the first `size` bytes."""
        if self.is_regular:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)

    def replace(self, parts: Iterable[bytes]) -> None:
        """Replaces the file's content atomically. Raises OSError; the file is then unchanged."""
        with _beside(self.path, parts) as (fd, _):
            pass
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def write_whole(path: Path, parts: Iterable[Content]) -> None:
    """Writes a file atomically: readers find the old content (or none) or the new, never a part.

    A link is followed, and stays. Raises OSError with the file's name, OutputError if another process is writing it.
    """
    with _beside(Path(os.path.realpath(path)), parts) as (fd, _):
        pass
    os.close(fd)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """As `write_whole`, for libraries that write a file themselves, to the name this yields. A link is replaced."""
    with _beside(path) as (fd, temporary):
        yield temporary
    os.close(fd)


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which takes its place if the block ends well and is removed otherwise.

    Everything in it is on disk by then, and a folder that was there before is deleted only after. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        for each in (*folder.rglob("*"), folder):
            _sync(each)
        _replace_folder(folder, path)
        _sync_folder(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace_folder(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.rename(target, old)  # an empty folder may be replaced by a rename
    try:
        folder.rename(target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _beside(path: Path, parts: Iterable[Content] = ()) -> Iterator[tuple[int, Path]]:
    """Descriptor and name of a locked file of these parts beside `path`, which gets that name if the block ends well.

    The descriptor is then the caller's to close.
    """
    # The same every time, so that what a killed process left is used again; short, as a name may be at its limit.
    temporary = path.with_name(f".{hashlib.sha1(os.fsencode(path.name)).hexdigest()[:16]}.part")
    try:
        fd = _open_locked(temporary, os.O_NOFOLLOW)  # whoever made the folder may have put a link there
        try:
            os.ftruncate(fd, 0)  # what a killed process left
            for part in parts:
                _write(fd, part)
            yield fd, temporary
            os.fsync(fd)
            os.replace(temporary, path)
            _sync_folder(path)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
    except OSError as e:
        if not isinstance(e, Vl3EdgeError):
            e.filename, e.filename2 = str(path), None
        raise


def _open_locked(path: Path, flags: int = 0) -> int:
    """Opens a file to read and append, and locks it if it is one. Raises OutputError if another process holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            return fd
        try:
            _lock(fd, path)
            if os.path.samestat(path.stat(), state):
                return fd
        except FileNotFoundError:
            pass
        except OutputError:
            os.close(fd)
            raise
        os.close(fd)  # its writer gave the name to another file between opening and locking


def _write(fd: int, data: Content) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _lock(fd: int, path: Path) -> None:
    """OutputError if another process holds the lock. A file system without locks is warned about."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise OutputError(
            f"{path}: another process is writing to it; wait until it ends, or choose another file"
        ) from e
    except OSError as e:
        warnings.warn(f"{path} cannot be locked ({e.strerror}): do not start a second run on it", stacklevel=2)


def _sync_folder(path: Path) -> None:
    if sys.platform != "win32":
        _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
