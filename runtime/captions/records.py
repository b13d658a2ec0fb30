"""A result as one line: of JSON, and of plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..jobs import CaptionResult
from ..terminal import one_line, printable, steers


def json_line(record: CaptionResult) -> bytes:
    """The record as one line of JSON in UTF-8, with its line end."""
    return fields_line(record.to_json())


def fields_line(fields: Mapping[str, Any]) -> bytes:
    """An object as one line of JSON in UTF-8, with its line end."""
    return f"{json_text(fields)}\n".encode()


def json_text(value: Any) -> str:
    """A value as JSON on one line that can be written as UTF-8 and shown on a terminal."""
    text = json.dumps(value, ensure_ascii=False)
    # A file name that is not UTF-8 cannot be written as such, and what steers a terminal must not reach one.
    return json.dumps(value) if any(steers(c) for c in text) else text


def text_line(record: CaptionResult, several: bool) -> str:
    """The record as plain text with its line end; empty for an error, and for an event that was not found in a segment.

    several: whether records of other clips come, too; the clip is then named.
    """
    if record.error is not None or (record.segment is not None and record.found is False):
        return ""
    name = f"{one_line(record.media)}: " if several else ""
    caption = printable(record.caption or "")
    span = f"{clock_time(record.start_s or 0.0)} - {clock_time(record.end_s or 0.0)}"
    if record.found:
        return f"{name}{span}\n"
    if record.found is False:
        return f"{name}not found: {caption}\n"
    return f"{name}[{span}] {caption}\n" if record.segment is not None else f"{name}{caption}\n"


def clock_time(seconds: float) -> str:
    """A time as people read it: 0:01:02.5."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{tenths // 10:02}.{tenths % 10}"
