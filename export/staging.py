"""Where an export is written before it counts: a folder beside the target, renamed when everything is in it.

Interrupted at any moment, it leaves the target as it was; at worst a hidden folder stays, which nothing takes for a
bundle because the manifest is written last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ExportError


@contextmanager
def staged_folder(target: Path, force: bool, needed_bytes: int) -> Iterator[Path]:
    """Yields an empty folder; it becomes `target` if the block ends well, and is removed otherwise.

    Raises ExportError, before anything is written, if target exists without `force` (or is not a bundle, which even
    force does not replace), or if the disk has no room.
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
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        _replace(folder, target)
    except OSError as e:
        if e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise ExportError(f"the disk is full: {target.parent} has no room for the bundle; nothing was kept.") from e
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _replace(folder: Path, target: Path) -> None:
    """Puts folder in target's place; the old bundle is deleted only once the new one is there."""
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
