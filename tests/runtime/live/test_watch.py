"""When questions are asked and what becomes of a watch that ends; the model is a stand-in that remembers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from clips import write_clip
from streams import http_stream, paced, transport_stream

from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.decode.generate import Chunk, GenerationStats
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.live.change import ChangeDetector
from vl3edge.runtime.live.events import LiveEvent
from vl3edge.runtime.live.reader import LiveFrame, LiveReader
from vl3edge.runtime.live.source import Reconnection, SourceOptions
from vl3edge.runtime.live.watch import AnswerPart, WatchConfig, watch


@dataclass(frozen=True)
class Seen:
    notes: tuple[str, ...]
    dropped_frames: int


class Rememberer:
    """A session whose answer is the times of the frames it has; it keeps `room` of them."""

    def __init__(self, room: int = 1000, push_s: float = 0.0) -> None:
        self.times: list[float] = []
        self.kept: list[bool] = []
        self.dropped_frames = 0
        self._room = room
        self._push_s = push_s

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def source_sizes(self) -> tuple[tuple[int, int], ...]:
        return ((64, 96),) * len(self.times)

    @property
    def num_tokens(self) -> int:
        return 10 * len(self.times)

    def push(self, frame: np.ndarray, timestamp_s: float) -> Seen:
        time.sleep(self._push_s)
        self.times.append(timestamp_s)
        if len(self.times) <= self._room:
            return Seen((), 0)
        self.times.pop(0)
        self.dropped_frames += 1
        return Seen((), 1)

    def ask(self, question: str, config: GenerationConfig | None, keep: bool) -> Iterator[Chunk]:
        self.kept.append(keep)
        for time_s in self.times:
            yield Chunk(f"{time_s:g} ")
        yield Chunk("", "stop", GenerationStats(1, 0, 1, 0.0, 0.0))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames at one a second; the sixth and those after it show another picture."""
    path = tmp_path / "clip.mp4"
    return write_clip(path, [25 * n for n in range(10)])


class Playback:
    """A reader that drops nothing: all frames of a file one after another, however busy the machine is."""

    lost = False

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            decoded = container.decode(video=0)
            self._frames = deque(LiveFrame(frame.to_ndarray(format="rgb24"), frame.time) for frame in decoded)

    @property
    def ended(self) -> bool:
        return not self._frames

    def take(self, timeout_s: float) -> LiveFrame | None:
        return self._frames.popleft() if self._frames else None

    def events(self) -> list[LiveEvent]:
        return []


def answers(items: list[LiveEvent | AnswerPart]) -> list[tuple[float, str, str]]:
    """(time, cause, answer) of each."""
    done, text = [], ""
    for item in items:
        if isinstance(item, AnswerPart):
            text += item.chunk.text
            if item.chunk.finish_reason is not None:
                done.append((item.time_s, item.cause, text.strip()))
                text = ""
    return done


def seen(clip: Path, inquiry: WatchConfig, session: Rememberer | None = None) -> list[LiveEvent | AnswerPart]:
    return list(watch(Playback(clip), session or Rememberer(), inquiry))


def test_asked_every_so_often_and_at_the_end(clip: Path) -> None:
    session = Rememberer()
    asked = answers(seen(clip, WatchConfig(("what?",), every_s=4.0), session))
    assert [(t, cause) for t, cause, _ in asked] == [(4.0, "time"), (8.0, "time"), (9.0, "end")]
    assert asked[0][2] == "0 1 2 3 4"
    assert session.kept == [False] * 3


def test_not_asked_twice_about_the_same(clip: Path) -> None:
    asked = answers(seen(clip, WatchConfig(("what?", "where?"), every_s=3.0, keep=True)))
    assert [t for t, _, _ in asked] == [3.0, 3.0, 6.0, 6.0, 9.0, 9.0]


def test_a_long_pause_is_made_up_for_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", [0, 25, 50, 400, 425, 450])
    asked = answers(seen(path, WatchConfig(("what?",), every_s=2.0)))
    assert [t for t, _, _ in asked] == [2.0, 16.0, 18.0]


def test_asked_on_a_change(tmp_path: Path) -> None:
    # The pictures of `clips.py` differ from one to the next; equal times of a slide show do not.
    path = write_clip(tmp_path / "clip.mp4", [25 * n for n in range(6)])
    asked = answers(seen(path, WatchConfig(("what?",), every_s=None, change=ChangeDetector(0.01))))
    assert asked[0] == (1.0, "change", "0 1")
    assert [cause for _, cause, _ in asked[1:]] == ["end"]  # it never was calm again


def test_it_ends_at_the_time_given(clip: Path) -> None:
    asked = answers(seen(clip, WatchConfig(("what?",), every_s=100.0, until_s=5.0)))
    assert asked == [(5.0, "end", "0 1 2 3 4 5")]


def test_stopping_ends_an_answer_where_it_is(clip: Path) -> None:
    items: list[LiveEvent | AnswerPart] = []
    for item in watch(
        Playback(clip), Rememberer(), WatchConfig(("what?",), every_s=4.0), None, lambda: len(items) >= 2
    ):
        items.append(item)
    parts = [item for item in items if isinstance(item, AnswerPart)]
    assert [part.chunk.text for part in parts] == ["0 ", "1 "]
    assert [part.chunk.finish_reason for part in parts] == [None, None]


def test_the_oldest_frames_leaving_is_told_once(clip: Path) -> None:
    items = seen(clip, WatchConfig(("what?",)), Rememberer(room=4))
    told = [item for item in items if isinstance(item, LiveEvent) and "oldest frames are dropped" in item.message]
    assert [event.time_s for event in told] == [4.0]


def test_what_was_seen_of_a_source_that_is_given_up_is_asked_about() -> None:
    frames = [np.full((64, 96, 3), n, np.uint8) for n in range(20)]
    pieces = transport_stream(frames, 10)
    items: list[LiveEvent | AnswerPart] = []
    once = Reconnection(attempts=0)
    with (
        http_stream(lambda _: paced(pieces, 0.01)) as (url, _),
        LiveReader(url, 2.0, SourceOptions(1.5), once) as reader,
    ):
        watching = watch(reader, Rememberer(), WatchConfig(("what?",)))
        with pytest.raises(MediaError, match="was lost"):
            items += watching
    assert [(t, cause) for t, cause, _ in answers(items)] == [(1.5, "end")]


def test_a_slow_model_sees_the_newest_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(50))
    session = Rememberer(push_s=0.15)
    with LiveReader(str(path), 25.0, speed=2.0) as reader:
        asked = answers(list(watch(reader, session, WatchConfig(("what?",)))))
    counts = reader.counts
    assert counts.sampled == 50 == counts.taken + counts.dropped
    assert counts.taken == session.num_frames < 20
    assert asked == [(1.96, "end", " ".join(f"{t:g}" for t in session.times))]


@pytest.mark.parametrize(
    "options",
    [{"questions": ()}, {"every_s": None}, {"every_s": 0.0}, {"every_s": float("nan")}, {"until_s": -1.0}],
)
def test_bad_inquiries(options: dict) -> None:
    with pytest.raises(ConfigError):
        WatchConfig(**{"questions": ("what?",), **options})
