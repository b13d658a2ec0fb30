"""Watching: frames from a live source go into a streaming session, and questions are asked when they are due.

One loop and no queue. While the model encodes a frame or answers, the source goes on; of what it sent meanwhile the
newest sampled frame is seen next, and the others are counted as dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..config import GenerationConfig
from ..decode.generate import Chunk
from ..errors import ConfigError, MediaError
from ..prompt.boxes import Size
from .change import ChangeDetector
from .events import LiveEvent
from .reader import LiveFrame, LiveReader
from .session import Session

POLL_S = 0.2
"""How long a wish to stop may wait while no frame comes."""

Cause = Literal["time", "change", "end"]


@dataclass(frozen=True)
class WatchConfig:
    """What is asked, and when. Times are the stream's, so a recording is asked at the same frames every time.

    questions: asked one after another, each time.
    every_s: asked with the first frame at or after every so many seconds; None leaves it to changes.
    change: asked when a change begins; None leaves it to the clock.
    keep: questions and answers stay in the context, so that the model knows what it said. Else each is asked as if it
        were the first, and no earlier mistake is repeated.
    until_s: the watch ends there; None at the end of the source.
    """

    questions: Sequence[str]
    every_s: float | None = 10.0
    change: ChangeDetector | None = None
    keep: bool = False
    until_s: float | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise ConfigError("there is nothing to ask: give at least one question")
        if self.every_s is None and self.change is None:
            raise ConfigError("say when to ask: at an interval, on a change, or both")
        for name in ("every_s", "until_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise ConfigError(f"{name} must be a positive number of seconds, not {value}")


@dataclass(frozen=True)
class AnswerPart:
    """A piece of an answer about everything up to `time_s`; its last chunk has a finish_reason.

    source_sizes: height and width in pixels of the frames it is about; what boxes are told in.
    """

    time_s: float
    question: str
    cause: Cause
    chunk: Chunk
    source_sizes: tuple[Size, ...] = ()


def watch(
    reader: LiveReader,
    session: Session,
    watch_config: WatchConfig,
    config: GenerationConfig | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[LiveEvent | AnswerPart]:
    """Shows the session what a started reader reads; yields what happens, and the answers piece by piece.

    When a recording ends, or `until_s` is reached, the questions are asked once more about what came since the last
    time. `stopped` is looked at between frames and between the pieces of an answer, which then ends without its last.
    Raises MediaError when the source cannot be read; what push and ask of the session raise.
    """
    return _Watch(reader, session, watch_config, config, stopped).run()


class _Watch:
    def __init__(
        self,
        reader: LiveReader,
        session: Session,
        watch_config: WatchConfig,
        config: GenerationConfig | None,
        stopped: Callable[[], bool],
    ) -> None:
        self._reader = reader
        self._session = session
        self._watch_config = watch_config
        self._config = config
        self._stopped = stopped
        self._due_s = watch_config.every_s
        self._seen_s: float | None = None  # the time of the last frame
        self._seen_at_s = 0.0  # and by this machine's clock
        self._asked_s: float | None = None  # the time of the last frame that was asked about

    def run(self) -> Iterator[LiveEvent | AnswerPart]:
        failure = None
        while not self._stopped() and not self._over():
            try:
                frame = self._reader.take(POLL_S)
            except MediaError as e:
                failure = e  # of the source alone: what was seen can still be asked about
                break
            yield from self._reader.events()
            if frame is not None:
                yield from self._see(frame)
            elif self._reader.ended:
                break
        if not self._stopped() and self._seen_s is not None and self._asked_s != self._seen_s:
            yield from self._ask("end")
        if failure is not None:
            raise failure

    def _see(self, frame: LiveFrame) -> Iterator[LiveEvent | AnswerPart]:
        report = self._session.push(frame.pixels, frame.timestamp_s)
        first_to_leave = report.dropped_frames > 0 and self._session.dropped_frames == report.dropped_frames
        self._seen_s, self._seen_at_s = frame.timestamp_s, time.monotonic()
        for note in report.notes:
            yield LiveEvent(frame.timestamp_s, note)
        if first_to_leave:
            yield LiveEvent(frame.timestamp_s, "the context is full: the oldest frames are dropped from now on")
        changed = self._watch_config.change is not None and self._watch_config.change.push(
            frame.pixels, frame.timestamp_s
        )
        if self._due_s is not None and self._watch_config.every_s is not None and frame.timestamp_s >= self._due_s:
            self._due_s += self._watch_config.every_s * (
                1 + (frame.timestamp_s - self._due_s) // self._watch_config.every_s
            )
            yield from self._ask("time")
        elif changed:
            yield from self._ask("change")

    def _ask(self, cause: Cause) -> Iterator[AnswerPart]:
        time_s = self._asked_s = self._seen_s or 0.0
        for question in self._watch_config.questions:
            chunks = self._session.ask(question, self._config, self._watch_config.keep)
            sizes = self._session.source_sizes
            for chunk in chunks:
                yield AnswerPart(time_s, question, cause, chunk, sizes)
                if self._stopped() and chunk.finish_reason is None:
                    return

    def _over(self) -> bool:
        """Whether `until_s` is reached. While the source is lost, time goes on."""
        if self._watch_config.until_s is None or self._seen_s is None:
            return False
        if self._seen_s >= self._watch_config.until_s:
            return True
        return self._reader.lost and self._seen_s + time.monotonic() - self._seen_at_s >= self._watch_config.until_s
