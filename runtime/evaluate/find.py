"""Where a set's media lie: in the folders that the benchmarks' own archives have, whatever the extension."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..media.addresses import is_address
from .item import Source, StoredPicture

_FOLDERS = ("", "videos", "video", "data", "images", "image")
_VIDEO = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".MP4")
_PICTURE = (".jpg", ".png", ".jpeg", ".webp", ".JPG")


class MediaFinder:
    """Names of media to paths. data: the data file; roots: folders below which they are, in the order of the search."""

    def __init__(self, data: Path, roots: Sequence[Path]) -> None:
        self.data = data
        self._roots = roots
        self._beside: dict[str, Any] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    def video(self, name: Any, *folders: str) -> str:
        """A video by its name or id; folders: where the benchmark's archive has it, below the root."""
        return self._find(name, folders, _VIDEO)

    def picture(self, value: Any, *folders: str) -> Source:
        """A picture by its name or id; one that lies in the data file is itself."""
        return value if isinstance(value, StoredPicture) else self._find(value, folders, _PICTURE)

    def beside(self, name: str) -> Any:
        """The content of a JSON file beside the data file, or in a root; None if there is none."""
        if name not in self._beside:
            paths = [folder / name for folder in (self.data.parent, *self._roots) if (folder / name).is_file()]
            try:
                self._beside[name] = json.loads(paths[0].read_text(encoding="utf-8")) if paths else None
            except (OSError, ValueError) as e:
                raise ConfigError(f"{paths[0]}: it is not JSON ({e})") from e
        return self._beside[name]

    def rows_beside(self, name: str, key: str) -> dict[str, Any]:
        """Rows of a JSON list beside the data file by one of their fields, as text; empty if there is none."""
        if name not in self._rows:
            listed = self.beside(name)
            rows = listed if isinstance(listed, list) else []
            self._rows[name] = {str(row.get(key)): row for row in rows if isinstance(row, dict)}
        return self._rows[name]

    def _find(self, name: Any, folders: tuple[str, ...], suffixes: tuple[str, ...]) -> str:
        """The first that exists; else what it would be called, so that asking about it says what is missing."""
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name):
            raise ValueError("it names no video or picture")
        name = str(name)
        if is_address(name) or os.path.isabs(name):
            return name
        known = os.path.splitext(name)[1].lower() in {suffix.lower() for suffix in (*_VIDEO, *_PICTURE)}
        names = [name] if known else [*(name + suffix for suffix in suffixes), name]
        paths = (
            os.path.normpath(os.path.join(root, folder, candidate))
            for root in self._roots
            for folder in dict.fromkeys((*folders, *_FOLDERS))
            for candidate in names
        )
        missing = os.path.normpath(os.path.join(self._roots[0], next(iter(folders), ""), names[0]))
        return next(filter(os.path.exists, paths), missing)
