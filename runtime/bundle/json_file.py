"""Reading a bundle's JSON files, which are untrusted: bounded size, regular files only, one clear error."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from ..errors import BundleError


def read_json_file(path: Path, max_bytes: int, advice: str) -> Any:
    """The value in a JSON file.

    Links and special files are refused unread (a pipe would wait forever), so are files over max_bytes, numbers that
    JSON does not have, and keys that stand twice in one object, which readers take in different ways. advice: what the
    user should do about a damaged file, a sentence.
    Raises BundleError; FileNotFoundError where there is no such file.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a regular file. {advice}")
        if status.st_size > max_bytes:
            raise BundleError(f"{path} is too large: {status.st_size:,} bytes, above the limit of {max_bytes:,}.")
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
    except (FileNotFoundError, BundleError):
        raise
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path} is damaged ({e}). {advice}") from e
    except OSError as e:
        raise BundleError(f"{path} cannot be read ({e.strerror}).") from e


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {max(names, key=names.count)!r}")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
