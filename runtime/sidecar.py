"""One file beside each clip, as caption datasets have them: clip.mp4 and clip.txt."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .addresses import is_address
from .contents import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from .errors import ConfigError, OutputError
from .lockedfile import write_whole
from .outputs import document
from .recordfile import State
from .records import CaptionRecord, clip_key

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "jsonl": ".json"}
"""Of the sidecar, by format."""


class SidecarOutput:
    """Writes each clip's file when all of its records are there, at one moment; a clip with an error gets none.

    `write` raises OutputError where only the clip at hand cannot have its file.

    A clip that is cut into segments has all of them in its file; in JSON, a list of records instead of one.
    """

    def __init__(self, media: Sequence[str], suffix: str, style: str, keep: bool, force: bool) -> None:
        """suffix: of the sidecar, with its dot. keep: clips that have a file are done. force: it is replaced.

        Raises ConfigError if two clips would have one file, if it would take the name of a clip, and if there are
        files already and neither `keep` nor `force` says what to do about them.
        """
        self._style = style
        self._paths = _paths(media, suffix)
        self._force = force
        self._keep = keep
        self._held: dict[str, list[CaptionRecord]] = {}
        existing = [path for path in self._paths.values() if os.path.exists(path)]
        if existing and not (keep or force):
            raise ConfigError(
                f"{existing[0]} exists, as do {len(existing)} of {len(media)} files to be written: "
                "--resume skips their clips, --force replaces them"
            )

    def state(self, media: str) -> State:
        done = self._keep and os.path.exists(self._paths[clip_key(media)])
        return State.DONE if done else State.WAITING

    def segment_state(self, media: str, number: int, of: int) -> State:
        return State.WAITING

    def write(self, record: CaptionRecord) -> None:
        clip = clip_key(record.media)
        held = self._held.setdefault(clip, [])
        held.append(record)
        if record.segment is not None and len(held) < (record.segments or 0):
            return
        del self._held[clip]
        if any(part.error is not None for part in held):
            return
        path = self._paths[clip]
        if os.path.exists(path) and not self._force:
            raise OutputError(f"{path} has come into being since the start: it is left as it is")
        held.sort(key=lambda part: part.segment or 0)
        try:
            write_whole(path, self._content(held))
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the next clip would fare no better
            raise OutputError(f"{path}: {e.strerror or e}") from e

    def _content(self, records: list[CaptionRecord]) -> Sequence[bytes]:
        if self._style == "jsonl":
            whole = records[0].to_json() if records[0].segment is None else [part.to_json() for part in records]
            return [f"{json.dumps(whole, ensure_ascii=True, indent=1)}\n".encode()]
        return list(document(lambda: records, self._style))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def _paths(media: Sequence[str], suffix: str) -> dict[str, Path]:
    """The sidecar of each clip, by the clip's key."""
    if not suffix.startswith(".") or "/" in suffix or suffix == ".":
        raise ConfigError(f"--sidecar takes the ending of the files to write, such as .txt, not {suffix!r}")
    if suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES:
        raise ConfigError(f"--sidecar {suffix} is the ending of videos or images: a clip could be overwritten")
    paths: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    for name in media:
        if is_address(clip_key(name)):
            raise ConfigError(f"{name} is no file, so there is no place beside it; use -o instead of --sidecar")
        clip = Path(clip_key(name))
        path = clip.with_name(clip.name + suffix) if os.path.isdir(clip) else clip.with_suffix(suffix)
        if path in owners:
            raise ConfigError(f"{owners[path]} and {name} would both have the file {path}: caption them one by one")
        owners[path] = name
        paths[str(clip)] = path
    return paths
