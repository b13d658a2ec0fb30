"""What watching writes: answers as text, streamed as they are generated, or as JSON lines."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TextIO

from ..decode.generate import Answer, Chunk, join
from ..errors import Vl3EdgeError
from ..prompt.boxes import box_lines, read_boxes
from ..terminal import one_line, printable
from .watch import AnswerPart, Cause

FORMATS = ("text", "jsonl")


@dataclass(frozen=True)
class WatchState:
    """What the model has before it when it answers. num_frames, num_tokens: in its context.

    dropped_frames: sampled so far but never seen, as it was busy. forgotten_frames: seen, but no longer in the context.
    """

    num_frames: int
    num_tokens: int
    dropped_frames: int
    forgotten_frames: int


@dataclass(frozen=True)
class AnswerRecord:
    """One answer.

    source: without its password. time_s: of the last frame it is about, since the first one. at: local time when it was
    complete.

    cause: why it was asked ("time", "change", "end"). finish_reason: "stop", "length", or "interrupted" by the user.
    seconds: that it took. data: the answer's value, where it had to fit a JSON schema; error: why it has none.
    width_px, height_px: of the newest frame. boxes: as `BoxReading.to_json` has them, in pixels of the frames, with
    boxes_note if there is one.
    """

    source: str
    time_s: float
    at: str
    question: str
    answer: str
    finish_reason: str
    cause: Cause
    num_frames: int
    num_tokens: int
    dropped_frames: int
    forgotten_frames: int
    seconds: float
    width_px: int
    height_px: int
    boxes: list[dict[str, Any]]
    boxes_note: str | None = None
    data: Any = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields, without those that only some answers have, where it has none."""
        values = asdict(self)
        rare = ("boxes_note", "data", "error")
        return {name: value for name, value in values.items() if name not in rare or value is not None}


class AnswerWriter:
    """Puts the pieces of answers together and writes them to a stream; an answer is flushed when it is complete.

    source: what records call it.
    format: one of FORMATS. name_questions: whether text names the question before each answer.
    on_disk: whether the stream is a file, which is then synced after each answer. has_schema: whether answers have to
    be JSON. names_boxes: whether text has a line for each box after the answer. answer: the last one that is complete;
    error: why it is no JSON.
    """

    def __init__(
        self,
        source: str,
        stream: TextIO,
        format: str,
        name_questions: bool,
        on_disk: bool,
        has_schema: bool = False,
        names_boxes: bool = False,
    ) -> None:
        self._source = source
        self._stream = stream
        self._format = format
        self._name_questions = name_questions
        self._on_disk = on_disk
        self._has_schema = has_schema
        self._names_boxes = names_boxes
        self._first: AnswerPart | None = None  # of the answer that is being written
        self._chunks: list[Chunk] = []
        self.answer: Answer | None = None
        self.error: str | None = None
        self._begin_s = 0.0
        self.num_answers = 0

    def write(self, part: AnswerPart, state: WatchState) -> None:
        """Takes the next piece; state: as it is now."""
        if self._first is None:
            self._first, self._chunks, self._begin_s = part, [], time.monotonic()
            self.error = None
            if self._format == "text":
                asked = f"{one_line(part.question)} " if self._name_questions else ""
                self._stream.write(f"[{clock_text(part.time_s)}] {asked}")
        self._chunks.append(part.chunk)
        if self._format == "text":
            self._stream.write(printable(part.chunk.text))
            self._stream.flush()
        if part.chunk.finish_reason is not None:
            self._end(part.chunk.finish_reason, state)

    def interrupt(self, state: WatchState) -> None:
        """No more pieces will come: an answer that is not complete is written as far as it got."""
        if self._first is not None:
            self._end("interrupted", state)

    def _end(self, finish_reason: str, state: WatchState) -> None:
        assert self._first is not None
        self.num_answers += 1
        sizes = self._first.source_sizes
        text = "".join(chunk.text for chunk in self._chunks)
        reading, data = read_boxes(text, sizes), None
        if self._chunks[-1].finish_reason is not None:
            self.answer = join(self._chunks, sizes)
            try:
                data = self.answer.json() if self._has_schema else None
            except Vl3EdgeError as e:
                self.error = str(e)
        if self._format == "text":
            lines = box_lines(reading.boxes) if self._names_boxes else []
            self._stream.write("\n".join([" …" if finish_reason == "interrupted" else "", *lines, ""]))
        else:
            height, width = sizes[-1] if sizes else (0, 0)
            record = AnswerRecord(
                source=self._source,
                time_s=round(self._first.time_s, 3),
                at=datetime.now().astimezone().isoformat(timespec="seconds"),
                question=self._first.question,
                answer=text,
                finish_reason=finish_reason,
                cause=self._first.cause,
                seconds=round(time.monotonic() - self._begin_s, 3),
                width_px=width,
                height_px=height,
                data=data,
                error=self.error,
                **reading.to_json(),
                **asdict(state),
            )
            self._stream.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
        self._first = None
        self._stream.flush()
        if self._on_disk:
            os.fsync(self._stream.fileno())


def clock_text(time_s: float) -> str:
    """ "00:12.0", from an hour on "1:00:12.0"."""
    tenths = round(time_s * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02}:{tenths // 10:02}.{tenths % 10}"
    return f"{hours}:{text}" if hours else text
