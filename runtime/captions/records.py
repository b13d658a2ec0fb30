"""What captioning finds out about one clip, or one segment of it, and how that is said in JSON and in plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..media.addresses import clip_key
from ..terminal import one_line, printable, steers

Key = tuple[str, "int | None"]
"""Names what a record is about: the clip, as `clip_key` gives it, and the number of the segment, if it has any."""

_FIELDS = ("finish_reason", "num_frames", "num_tokens", "seconds", "start_s", "end_s", "segment", "segments")
_SEEN = ("seen_start_s", "seen_end_s")


@dataclass(frozen=True)
class CaptionRecord:
    """One result. error is None for an answer; then the other fields say what it took.

    caption: what the model wrote; to `find`, its answer. seconds: from opening the clip to the end of the answer.
    start_s, end_s: the part of the clip the caption is about, or the event found, in seconds on the clip's clock.
    segment, segments: number of the piece, from 1, and of how many.
    find, found: the event looked for, and whether the answer names its time.
    seen_start_s, seen_end_s: the part of the clip in which it was looked for.
    """

    media: str
    caption: str | None = None
    finish_reason: str | None = None
    num_frames: int | None = None
    num_tokens: int | None = None
    seconds: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    segment: int | None = None
    segments: int | None = None
    find: str | None = None
    found: bool | None = None
    seen_start_s: float | None = None
    seen_end_s: float | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        return clip_key(self.media), self.segment

    def to_json(self) -> dict[str, Any]:
        """The fields of the JSON line: media, what was found out or the error, and what the record has of the rest."""
        head: dict[str, Any] = {"media": self.media}
        if self.find is not None:
            head |= {"find": self.find, "found": self.found, "answer": self.caption}
        else:
            head |= {"caption": self.caption}
        if self.error is not None:
            head = {"media": self.media, "error": self.error}
        return head | {name: value for name in (*_FIELDS, *_SEEN) if (value := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CaptionRecord:
        """The record of a line that `to_json` gave. Raises KeyError or TypeError for another."""
        if not isinstance(fields["media"], str) or not {"caption", "answer", "error"} & set(fields):
            raise TypeError("not a record")
        known = {name: fields.get(name) for name in ("find", "found", "error", *_FIELDS, *_SEEN)}
        return cls(fields["media"], caption=fields.get("answer", fields.get("caption")), **known)


def json_line(record: CaptionRecord) -> bytes:
    """The record as one line of JSON in UTF-8, with its line end."""
    line = json.dumps(record.to_json(), ensure_ascii=False)
    # A file name that is not UTF-8 cannot be written as such, and what steers a terminal must not reach one.
    if any(steers(c) for c in line):
        line = json.dumps(record.to_json())
    return f"{line}\n".encode()


def text_line(record: CaptionRecord, several: bool) -> str:
    """The record as plain text with its line end; empty for an error, and for an event that was not found in a segment.

    several: whether records of other clips come, too; the clip is then named.
    """
    if record.error is not None or (record.segment is not None and record.found is False):
        return ""
    name = f"{one_line(record.media)}: " if several else ""
    caption = printable(record.caption or "")
    span = f"{_clock(record.start_s or 0.0)} - {_clock(record.end_s or 0.0)}"
    if record.found:
        return f"{name}{span}\n"
    if record.found is False:
        return f"{name}not found: {caption}\n"
    return f"{name}[{span}] {caption}\n" if record.segment is not None else f"{name}{caption}\n"


def _clock(seconds: float) -> str:
    """A time as people read it: 0:01:02.5."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{tenths // 10:02}.{tenths % 10}"
