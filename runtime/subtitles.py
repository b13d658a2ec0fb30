"""Captions with their times as subtitles that players open: SubRip (srt) and WebVTT (vtt).

Neither format may be steered by what a model wrote: a line break would end a cue, `-->` would start one, and players
take `<b>` and `{\\an8}` for markup. WebVTT has escapes for these; SubRip has none, so there an invisible word joiner
parts the characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .records import CaptionRecord, printable

VTT_HEADER = "WEBVTT\n\n"
_MIN_CUE_S = 1.0  # an event found at one moment is shown for so long
_WORD_JOINER = "\u2060"


def subtitles(records: Iterable[CaptionRecord], style: str) -> str:
    """A whole subtitle file, cues in order of their times. style: "srt" or "vtt"."""
    shown = sorted((r for r in records if is_shown(r)), key=lambda r: (r.start_s or 0.0, r.end_s or 0.0))
    head = VTT_HEADER if style == "vtt" else ""
    return head + "".join(cue(record, number, style) for number, record in enumerate(shown, 1))


def is_shown(record: CaptionRecord) -> bool:
    """Whether a record has anything to show: not errors, events that were not found, or empty captions."""
    return record.error is None and record.found is not False and bool(_text(record))


def cue(record: CaptionRecord, number: int, style: str) -> str:
    """One cue with the blank line that ends it. number: of the cue, from 1."""
    start = record.start_s or 0.0
    end = max(record.end_s or 0.0, start + _MIN_CUE_S)
    text = _text(record)
    if style == "vtt":
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"{_time(start, '.')} --> {_time(end, '.')}\n{text}\n\n"
    text = re.sub(r"<|\{(?=\\)|--(?=>)", rf"\g<0>{_WORD_JOINER}", text)
    return f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n\n"


def _text(record: CaptionRecord) -> str:
    """What a cue says, on one line: the caption, or which event happens here."""
    return " ".join(printable(record.find or record.caption or "").split())


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
