"""Stages an export in a folder beside the target, renamed when complete.

An interruption leaves the target untouched; at worst a hidden folder remains, which is never mistaken for a bundle
because the manifest is written last.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vl3edge.runtime.files import written_folder

from .errors import ExportError


@contextmanager
def staged_folder(target: Path, force: bool, needed_bytes: int) -> Iterator[Path]:
    """Yields an empty folder, which becomes `target` if the block succeeds, and is removed otherwise.

    Raises ExportError, before anything is written, if target exists without `force` (or is not a bundle, which even
    force does not replace), or if the disk is too full.
    """
    target = target.resolve()
    check_target(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise ExportError(
            f"the bundle needs about {needed_bytes / 1e9:.1f} GB, but {target.parent} has {free / 1e9:.1f} GB free; "
            "free some space or choose another folder with -o."
        )
    try:
        with written_folder(target) as folder:
            yield folder
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"the disk is full: {target.parent} has no room for the bundle; nothing was kept.") from e
        raise


def check_target(target: Path, force: bool) -> None:
    """Raises ExportError if there is something at `target` that may not be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target} exists and is not a folder; choose another name with -o.")
    if not any(target.iterdir()):
        return
    if not (target / "bundle.json").is_file():
        raise ExportError(
            f"{target} exists and is not a bundle, so it will not be replaced; choose another name with -o."
        )
    if not force:
        raise ExportError(f"{target} exists; --force replaces it.")
