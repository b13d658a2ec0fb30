"""A collection's records in a file of JSON lines that can be stopped at any moment and continued.

At every moment the file holds at most one record of each clip (or segment), and each line is whole but perhaps the
last, which a kill may cut short and the next run removes. A record that takes the place of an error is written with
the whole file anew, at one moment: an error is seldom, and a file with both would count the clip twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from ..errors import ConfigError
from ..files import LockedFile
from ..jobs import CaptionResult, Key
from ..media.addresses import clip_key
from .records import json_line


class State(Enum):
    """What a file knows of a clip or a segment."""

    WAITING = "no record"
    DONE = "captioned"
    FAILED = "an error"


class RecordFile:
    """The records of a run, one JSON line each. It is locked until it is closed."""

    def __init__(self, path: Path, keep: bool = False, force: bool = False) -> None:
        """keep: whether to continue what the file holds. force: whether to replace it; one of the two at most.

        Raises ConfigError if the file holds something and neither is wanted, or something else than records is to be
        continued; OutputError if another process writes it; OSError.
        """
        self._file = LockedFile(path, discard=force)
        self._states: dict[Key, State] = {}
        self._segments: dict[str, int] = {}
        try:
            if self._file.size and not (keep or force):
                raise ConfigError(
                    f"{path} exists; continue it with --resume, replace it with --force, or choose another"
                )
            if keep:
                self._file.truncate(self._read(path))
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path) -> int:
        """Takes in the file's records; the size in bytes of its whole lines."""
        size = 0
        for number, line in enumerate(self._file.lines() if self._file.is_regular else (), 1):
            try:
                record = CaptionResult.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise ConfigError(
                    f"{path} line {number} is not a record of this command; choose another file with -o."
                ) from e
            self._note(record)
            size += len(line)
        return size

    def _note(self, record: CaptionResult) -> None:
        self._states[record.key] = State.DONE if record.error is None else State.FAILED
        if record.segments is not None:
            self._segments[record.key[0]] = record.segments

    def state(self, media: str) -> State:
        """Of a whole clip: done if all of its segments are, failed if all have a record, one of them an error."""
        clip = clip_key(media)
        if clip not in self._segments:
            return self._states.get((clip, None), State.WAITING)
        parts = [self.segment_state(media, number, None) for number in range(1, self._segments[clip] + 1)]
        for state in (State.WAITING, State.FAILED):
            if state in parts:
                return state
        return State.DONE

    def segment_state(self, media: str, number: int, of: int | None) -> State:
        """Of one segment. Raises ConfigError if the file was made with another number of them."""
        clip = clip_key(media)
        if of is not None and self._segments.get(clip, of) != of:
            raise ConfigError(
                f"{self._file.path} has {media} in {self._segments[clip]} segments, not {of}: use the same --segment, "
                "--start and --end as before, or another file with -o"
            )
        return self._states.get((clip, number), State.WAITING)

    def write(self, record: CaptionResult) -> None:
        """Adds a record; it is on disk when this returns. It takes the place of an error of the same clip or segment.

        Raises OSError, with nothing changed.
        """
        stale = {key for key in (record.key, (record.key[0], None)) if self._states.get(key) is State.FAILED}
        if stale:
            self._file.replace(self._without(stale, json_line(record)))
            for key in stale:
                del self._states[key]
        else:
            self._file.append(json_line(record))
        self._note(record)

    def forget(self, media: str) -> None:
        """Removes the error record of what was no clip: an argument that matched nothing, a folder that was closed."""
        key = (clip_key(media), None)
        if self._states.get(key) is State.FAILED:
            self._file.replace(self._without({key}, b""))
            del self._states[key]

    def _without(self, keys: set[Key], last: bytes) -> Iterator[bytes]:
        for line in self._file.lines():
            if CaptionResult.from_json(json.loads(line)).key not in keys:
                yield line
        yield last

    def records(self) -> Iterator[CaptionResult]:
        """All records, in the order written."""
        return (CaptionResult.from_json(json.loads(line)) for line in self._file.lines())

    def remove(self) -> None:
        """Deletes the file."""
        self._file.path.unlink()

    def finish(self) -> None:
        """All is on disk already."""

    def close(self) -> None:
        """Unlocks the file for other processes."""
        self._file.close()
