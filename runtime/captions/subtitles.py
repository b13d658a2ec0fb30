"""Captions with their times as subtitles that players open: SubRip (srt) and WebVTT (vtt).

Neither format may be steered by what a model wrote: a line break would end a cue, `-->` would start one, and players
take `<b>` and `{\\an8}` for markup. WebVTT has escapes for these; SubRip has none, so there an invisible word joiner
parts the characters.

Cues follow one another without overlap, within the film: a segment's lasts as long as the segment. An event of less
than a second is shown for one, as far as the part in which it was looked for has room.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ..jobs import CaptionResult
from ..terminal import printable

VTT_HEADER = "WEBVTT\n\n"
_MIN_CUE_MS = 1000  # an event found at one moment, and a picture, are shown for so long
_WORD_JOINER = "\u2060"


def subtitles(records: Iterable[CaptionResult], format: str) -> str:
    """A whole subtitle file, cues in order of their times. format: "srt" or "vtt"."""
    shown = sorted((r for r in records if is_shown(r)), key=lambda r: (r.start_s or 0.0, r.end_s or 0.0))
    cues = Cues(format)
    return (VTT_HEADER if format == "vtt" else "") + "".join(cues.next(record) for record in shown)


def is_shown(record: CaptionResult) -> bool:
    """Whether a record has anything to show: not errors, events that were not found, or empty captions."""
    return record.error is None and record.found is not False and bool(_text(record))


class Cues:
    """Writes the cues of one film, records that are shown, in the order of their times. format: "srt" or "vtt"."""

    def __init__(self, format: str) -> None:
        self._format = format
        self._count = 0
        self._end_ms = 0

    def next(self, record: CaptionResult) -> str:
        """One cue with the blank line that ends it."""
        start, end = _span_ms(record)
        start = max(start, self._end_ms)
        end = max(end, start + 1)
        self._count += 1
        self._end_ms = end
        text = _text(record)
        if self._format == "vtt":
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return f"{_time(start, '.')} --> {_time(end, '.')}\n{text}\n\n"
        text = re.sub(r"<|\{(?=\\)|--(?=>)", rf"\g<0>{_WORD_JOINER}", text)
        return f"{self._count}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n\n"


def _span_ms(record: CaptionResult) -> tuple[int, int]:
    """When a record is shown, in milliseconds."""
    start, end = _milliseconds(record.start_s or 0.0), _milliseconds(record.end_s or 0.0)
    if end > start and record.find is None:
        return start, end
    if record.seen_start_s is None or record.seen_end_s is None:
        return start, max(end, start + _MIN_CUE_MS)
    end = max(end, min(start + _MIN_CUE_MS, _milliseconds(record.seen_end_s)))
    return min(start, max(end - _MIN_CUE_MS, _milliseconds(record.seen_start_s))), end


def _milliseconds(seconds: float) -> int:
    """Halves up, so that times that differ by two or more stay apart."""
    return math.floor(seconds * 1000 + 0.5)


def _text(record: CaptionResult) -> str:
    """What a cue says, on one line: the caption, or which event happens here."""
    return " ".join(printable(record.find or record.caption or "").split())


def _time(milliseconds: int, point: str) -> str:
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
