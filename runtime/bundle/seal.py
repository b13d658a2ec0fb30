"""What is remembered of a bundle's files from when they were hashed, so that they need not be hashed at every start.

A file is taken for unchanged if its size, times and inode are. Nobody can set the time of a status change (ctime), so a
file that was replaced, or written to in place and given back its old time, is hashed again; so is a copy. A file that
was changed within a tick of the clock before it is hashed could be changed again in the same tick: that is waited out.

The seal lies in the bundle's folder, or, where that cannot be written, in the user's cache folder. It is no signature:
who can write there can as well write a new manifest. What is damaged, of another manifest, or cannot be read is as
good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from pathlib import Path

from ..errors import BundleError, OutputError
from ..files import write_whole
from .json_file import read_json_file
from .manifest import sealed

SEAL_NAME = ".bundle-seal.json"
_FORMAT = "vl3edge-seal 1"
_MAX_BYTES = 4 << 20
_TICK_NS = 20_000_000  # of the clock that files get their times from: 1 to 10 ms
_SECOND_NS = 1_000_000_000

Print = tuple[int, int, int, int, str]
"""Size, mtime_ns, ctime_ns and inode of a file, and the sha256 that it had with them."""


class Seal:
    """The seal of one bundle: `holds` and `note` may be called from several threads."""

    def __init__(self, folder: Path, manifest: Path) -> None:
        """Reads what there is. manifest: of the bundle; a seal is for one state of it."""
        self._places = [place for place in (folder / SEAL_NAME, _cache_place(folder)) if place is not None]
        try:
            self._manifest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        except OSError:
            self._manifest = ""
        self._known = {place: self._read(place) for place in self._places}
        self._found: dict[str, Print] = {}
        self._grown = False

    def holds(self, name: str, status: os.stat_result, sha256: str) -> bool:
        """Whether a file with this status had this sha256 when it was hashed last."""
        seen = _print(status, sha256)
        if not status.st_ino or not any(known.get(name) == seen for known in self._known.values()):
            return False
        self._found[name] = seen
        return True

    def note(self, name: str, before: os.stat_result, after: os.stat_result, sha256: str) -> None:
        """Remembers a file that was hashed; its status before and after."""
        if before.st_ino and _print(before, sha256) == _print(after, sha256):
            self._found[name] = _print(after, sha256)
            self._grown = True

    def write(self) -> None:
        """Writes what was held or noted, if there is anything new; where it cannot be written, nothing happens."""
        if not self._grown:
            return
        values = sealed({"format": _FORMAT, "manifest": self._manifest, "files": self._found})
        for place in self._places:
            with contextlib.suppress(OSError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file system without locks: what is cut short is no seal
                place.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OutputError):  # another process is writing the same
                    write_whole(place, [json.dumps(values).encode()])
                return

    def _read(self, place: Path) -> dict[str, Print]:
        """The prints in a file; none if there is anything wrong with it."""
        try:
            values = read_json_file(place, _MAX_BYTES, "")
            if values != sealed(values) or (values["format"], values["manifest"]) != (_FORMAT, self._manifest):
                return {}
            return {name: tuple(entry) for name, entry in values["files"].items()}
        except (BundleError, OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
            return {}


def settled(status: os.stat_result) -> bool:
    """Whether a change from now on will show in a file's times; a change of just now is waited out."""
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    age = time.time_ns() - newest
    if newest % _SECOND_NS == 0:  # times in whole seconds, or in two
        return age > 3 * _SECOND_NS
    if age < 0:  # the clock was set
        return False
    time.sleep(max(0, _TICK_NS - age) / _SECOND_NS)
    return True


def _print(status: os.stat_result, sha256: str) -> Print:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256)


def _cache_place(folder: Path) -> Path | None:
    """Where the seal of a bundle is whose folder cannot be written; None for a user without a home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"))
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
    return cache / "vl3edge" / "seals" / f"{name}.json" if cache.is_absolute() else None
