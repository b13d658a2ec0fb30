"""What captioning writes: JSON lines, plain text or SubRip subtitles; and reading JSON lines back to resume."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .errors import ConfigError

FORMATS = ("text", "jsonl", "srt")


@dataclass(frozen=True)
class CaptionRecord:
    """One clip's result. error is None for a caption; then the other fields say what it took.

    start_s, end_s: the part of the clip the caption is about, in seconds.
    """

    media: str
    caption: str | None = None
    finish_reason: str | None = None
    num_frames: int | None = None
    num_tokens: int | None = None
    seconds: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of the JSON line: media and error, or media and what belongs to a caption."""
        if self.error is not None:
            return {"media": self.media, "error": self.error}
        fields = ("media", "caption", "finish_reason", "num_frames", "num_tokens", "seconds", "start_s", "end_s")
        return {name: value for name in fields if (value := getattr(self, name)) is not None}


class RecordWriter:
    """Writes records to a stream, one at a time; each is whole and flushed (and on disk, for a file) when `write` ends.

    several: whether more than one record may come; plain text then names the clip before each caption.
    on_disk: whether the stream is a file, which is then synced after each record.
    """

    def __init__(self, stream: TextIO, style: str, several: bool, on_disk: bool) -> None:
        self._stream = stream
        self._style = style
        self._several = several
        self._on_disk = on_disk
        self._count = 0

    def write(self, record: CaptionRecord) -> None:
        if self._style == "jsonl":
            line = json.dumps(record.to_json(), ensure_ascii=False)
            if any("\ud800" <= c <= "\udfff" for c in line):  # a file name that is not UTF-8 cannot be written as such
                line = json.dumps(record.to_json())
            self._stream.write(line + "\n")
        elif record.caption is not None:
            self._count += 1
            caption = printable(record.caption)
            if self._style == "srt":
                times = f"{_srt_time(record.start_s or 0.0)} --> {_srt_time(record.end_s or 0.0)}"
                self._stream.write(f"{self._count}\n{times}\n{' '.join(caption.split())}\n\n")
            else:
                self._stream.write(f"{one_line(record.media)}: {caption}\n" if self._several else f"{caption}\n")
        self._stream.flush()
        if self._on_disk:
            os.fsync(self._stream.fileno())


def finished_media(path: Path) -> set[str]:
    """Media that already have a record in a JSON-lines file; a last line cut short is removed from the file.

    Raises ConfigError if the file is not JSON lines of ours.
    """
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            done.add(json.loads(line)["media"])
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(
                f"{path} line {number} is not a record of this command, so it is not continued; "
                "give another file with -o."
            ) from e
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return done


def printable(text: str) -> str:
    """Text without control characters but newline and tab: a model's output must not steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def one_line(text: str) -> str:
    """Printable text without line breaks, for messages with file names in them."""
    return printable(text.replace("\n", " ").replace("\t", " "))


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"
