"""Where captions go: a stream as they come, a file of records that can be continued, or one file beside each clip.

A format that cannot be appended to (srt, vtt, parquet, data sets) is made at the end, from records kept in FILE.jsonl
until then; so a run that is stopped loses nothing in any format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from ..errors import ConfigError, OutputError
from ..files import LockedFile, write_whole
from ..jobs import CaptionResult
from .datasets import DATASETS, dataset, for_dataset
from .jsonl import RecordFile, State
from .parquet import parquet_bytes
from .records import json_line, text_line
from .subtitles import VTT_HEADER, Cues, is_shown, subtitles

FORMATS = ("text", "jsonl", "srt", "vtt", "parquet", *DATASETS)
DOCUMENTS = ("srt", "vtt", "parquet", *DATASETS)
"""Formats that are written as a whole."""


class Output(Protocol):
    """Takes records, in any order, and knows what it has already: nothing, if its class does not say otherwise."""

    def state(self, media: str) -> State:
        """Of a clip."""
        return State.WAITING

    def segment_state(self, media: str, number: int, of: int) -> State:
        """Of a segment of a clip."""
        return State.WAITING

    def write(self, record: CaptionResult) -> None:
        """Takes a record; it is out (on disk, for a file) when this returns."""

    def finish(self) -> None:
        """To be called after the last record."""
        return

    def close(self) -> None:
        """To be called in any case."""
        return


class StreamOutput(Output):
    """Records as text, JSON lines or subtitles, each written when it comes.

    several: whether there is more than one clip; plain text then names them.
    """

    def __init__(self, write: Callable[[bytes], None], format: str, several: bool) -> None:
        self._write = write
        self._format = format
        self._several = several
        self._cues = Cues(format)
        if format == "vtt":
            write(VTT_HEADER.encode())

    def write(self, record: CaptionResult) -> None:
        if self._format == "jsonl":
            self._write(json_line(record))
        elif self._format == "text":
            self._write(text_line(record, self._several).encode())
        elif is_shown(record):
            self._write(self._cues.next(record).encode())


class TextFileOutput(StreamOutput):
    """Plain text in a file. Raises ConfigError if it exists and is not to be replaced."""

    def __init__(self, path: Path, several: bool, force: bool) -> None:
        self._file = LockedFile(path, discard=force)
        if self._file.size and not force:
            self._file.close()
            raise ConfigError(f"{path} exists; replace it with --force, or choose another file")
        super().__init__(self._file.append, "text", several)

    def close(self) -> None:
        self._file.close()


class FinishedOutput(Output):
    """Subtitles that an earlier run completed: there is nothing left to write."""

    def state(self, media: str) -> State:
        return State.DONE

    def segment_state(self, media: str, number: int, of: int) -> State:
        return State.DONE

    def write(self, record: CaptionResult) -> None:
        raise OutputError(f"{record.media}: all of its output was already written")


class DocumentOutput(RecordFile):
    """A document made at the end, from records in a file of JSON lines beside it.

    The records of subtitles are deleted when all is well; those of a Parquet file or a data set are kept, so that a
    later run can add clips to it. Raises ConfigError if it exists and is neither to be replaced nor continued.
    """

    def __init__(self, path: Path, format: str, keep: bool, force: bool) -> None:
        self._document = path
        self._format = format
        journal = records_of(path)
        if path.exists() and not force and not (keep and journal.exists()):
            raise ConfigError(f"{path} exists; replace it with --force, or choose another file")
        super().__init__(journal, keep, force)
        if format in DATASETS and any(record.error is None and record.kind is None for record in self.records()):
            self.close()
            raise ConfigError(f"{journal} does not say what {format} needs to know: choose another file with -o")

    def write(self, record: CaptionResult) -> None:
        super().write(for_dataset(record) if self._format in DATASETS else record)

    def finish(self) -> None:
        write_whole(self._document, document(self.records, self._format, Path(os.path.abspath(self._document)).parent))
        if self._format in ("srt", "vtt") and not any(record.error for record in self.records()):
            self.remove()


def records_of(path: Path) -> Path:
    """The file of JSON lines in which the records of a document are kept."""
    return path.with_name(f"{path.name}.jsonl")


def document(records: Callable[[], Iterable[CaptionResult]], format: str, folder: Path = Path()) -> Iterator[bytes]:
    """The content of a file in one of the formats, in parts.

    records: returns all records, each time it is called. folder: in which the file is.
    """
    if format == "parquet":
        yield from parquet_bytes(records())
    elif format in DATASETS:
        yield from dataset(records(), format, folder)
    elif format in ("srt", "vtt"):
        yield subtitles(records(), format).encode()
    else:
        yield from (json_line(r) if format == "jsonl" else text_line(r, False).encode() for r in records())


def stream_to(stream: TextIO) -> Callable[[bytes], None]:
    """Writes bytes to a text stream at once. Raises OSError with the name it has in messages, stdout."""

    def write(data: bytes) -> None:
        try:
            stream.write(data.decode())
            stream.flush()
        except OSError as e:
            e.filename = "stdout"
            raise

    return write
