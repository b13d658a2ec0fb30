"""One file beside each clip, as caption datasets have them: clip.mp4 and clip.txt."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, OutputError
from ..files import write_whole
from ..jobs import CaptionResult
from ..media.addresses import clip_key, is_address
from ..media.contents import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from .datasets import DATASETS, one_line_caption
from .jsonl import State
from .outputs import Output, document

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "jsonl": ".json"}
SUFFIXES |= {"sd-scripts": ".txt", "musubi-tuner": ".txt"}
"""Of the sidecar, by format."""


class SidecarOutput(Output):
    """Writes each clip's file when all of its records are there, at one moment; a clip with an error gets none.

    `write` raises OutputError where only the clip at hand cannot have its file.

    A clip that is cut into segments has all of them in its file; in JSON, a list of records instead of one.
    """

    def __init__(
        self,
        media: Sequence[str],
        suffix: str,
        format: str,
        keep: bool,
        force: bool,
        folder: Path | None = None,
    ) -> None:
        """suffix: of the sidecar, with its dot. keep: clips that have a file are done. force: it is replaced. folder:
        for all of them; None is beside each clip.

        Clips that would have one file (IMG.JPG and IMG.MOV) have files with their whole names (IMG.JPG.txt and
        IMG.MOV.txt); so has a clip whose file would be a clip. `note` says so; None if there are none.
        Raises ConfigError if a file would be a clip all the same, and if there are files already and neither `keep` nor
        `force` says what to do about them.
        """
        self._format = format
        self._paths, self.note = _paths(media, suffix, folder)
        self._force = force
        self._keep = keep
        self._held: dict[str, list[CaptionResult]] = {}
        existing = [path for path in self._paths.values() if os.path.exists(path)]
        if existing and not (keep or force):
            raise ConfigError(
                f"{existing[0]} exists ({len(existing)} of {len(media)} output files do): --resume skips their clips, "
                "--force replaces them"
            )
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def state(self, media: str) -> State:
        path = self._paths.get(clip_key(media))  # a name that matches nothing has none
        done = self._keep and path is not None and os.path.exists(path)
        return State.DONE if done else State.WAITING

    def write(self, record: CaptionResult) -> None:
        clip = clip_key(record.media)
        held = self._held.setdefault(clip, [])
        held.append(replace(record, job=None, clip=None, exception=None))  # its visual tokens are large
        if record.segment is not None and len(held) < (record.segments or 0):
            return
        del self._held[clip]
        if any(part.error is not None for part in held):
            return
        path = self._paths[clip]
        if os.path.exists(path) and not self._force:
            raise OutputError(f"{path} appeared during the run; not overwritten")
        held.sort(key=lambda part: part.segment or 0)
        try:
            write_whole(path, self._content(held))
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the next clip would fare no better
            raise OutputError(f"{path}: {e.strerror or e}") from e

    def _content(self, records: list[CaptionResult]) -> Sequence[bytes]:
        if self._format == "jsonl":
            whole = records[0].to_json() if records[0].segment is None else [part.to_json() for part in records]
            return [f"{json.dumps(whole, ensure_ascii=True, indent=1)}\n".encode()]
        if self._format in DATASETS:
            return [one_line_caption(records[0]).encode()]
        return list(document(lambda: records, self._format))


def _paths(media: Sequence[str], suffix: str, folder: Path | None) -> tuple[dict[str, Path], str | None]:
    """The sidecar of each clip, by the clip's key, and what is unusual about their names."""
    if not suffix.startswith(".") or "/" in suffix or suffix == ".":
        raise ConfigError(f"--sidecar takes a file extension, such as .txt, not {suffix!r}")
    if suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES:
        raise ConfigError(
            f"--sidecar {suffix} is an extension of videos or images, and clips could be overwritten: choose another"
        )
    for name in media:
        if is_address(clip_key(name)):
            raise ConfigError(
                f"{name} is not a file, so there is no place for its sidecar; use -o instead of --sidecar"
            )
    clips = {Path(clip_key(name)): name for name in media}
    places = {clip: clip if folder is None else Path(os.path.abspath(folder)) / clip.name for clip in clips}
    whole = {clip: place.with_name(place.name + suffix) for clip, place in places.items()}
    paths = {clip: whole[clip] if os.path.isdir(clip) else place.with_suffix(suffix) for clip, place in places.items()}
    return _told_apart(clips, paths, whole)


def _told_apart(
    clips: Mapping[Path, str], paths: dict[Path, Path], whole: Mapping[Path, Path]
) -> tuple[dict[str, Path], str | None]:
    """What `_paths` returns. clips: the names given. paths, whole: of the files, by the clip's stem or whole name."""
    note, others = None, 0
    while clashing := _clashing(paths, whole):  # again: a whole name may be another clip's stem
        if note is None:
            same = [clip for clip in clashing if paths[clip] == paths[clashing[0]]]
            names, files = " and ".join(clips[c] for c in same), " and ".join(whole[c].name for c in same)
            note = f"{paths[same[0]].name} would belong to more than one clip: {names} use {files}"
            others -= len(same)
        others += len(clashing)
        paths |= {clip: whole[clip] for clip in clashing}
    if lost := next((path for path in paths.values() if path in paths), None):
        raise ConfigError(
            f"{clips[lost]} is a clip, and the sidecar of another would overwrite it: caption them separately"
        )
    owners: dict[Path, Path] = {}
    for clip, path in paths.items():
        if owners.setdefault(path, clip) != clip:
            raise ConfigError(
                f"{clips[owners[path]]} and {clips[clip]} would both have {path}: caption them into separate folders"
            )
    return {str(clip): path for clip, path in paths.items()}, f"{note}, and so on for {others} more" if others else note


def _clashing(paths: Mapping[Path, Path], whole: Mapping[Path, Path]) -> list[Path]:
    """The clips whose file another clip would have or be, unless it has the whole name already."""
    counts = Counter(paths.values())
    return [clip for clip, path in paths.items() if path != whole[clip] and (counts[path] > 1 or path in paths)]
