"""Pieces of a video: their borders, their frames read in one pass, and what is captioned of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clips import LONG_GOP, OPEN_GOP, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from vl3edge.runtime import SamplingPlan, VideoLlama3
from vl3edge.runtime.captions.segments import plan_segments
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.media.frame_sampling import regular_timeline
from vl3edge.runtime.media.one_pass import OnePass
from vl3edge.runtime.media.video import open_video


@pytest.mark.parametrize(
    ("length", "ends"),
    [
        (10.0, [10, 20, 30, 36]),  # a rest of more than half is a piece
        (11.0, [11, 22, 36]),  # a shorter one joins the last
        (36.0, [36]),
        (50.0, [36]),
        (500.0, [36]),
        (0.1, [*(round(k * 0.1, 6) for k in range(1, 360)), 36]),
    ],
)
def test_borders(length: float, ends: list[float]) -> None:
    segments = plan_segments(0.0, 36.0, length)
    assert [segment.end_s for segment in segments] == ends
    assert [segment.start_s for segment in segments] == [0.0, *ends[:-1]]
    assert [(segment.number, segment.of) for segment in segments] == [(n, len(ends)) for n in range(1, len(ends) + 1)]


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 1e5), st.floats(1e-3, 2e3), st.floats(0.5, 1e4))
def test_pieces_cover_the_time_and_none_is_too_short(start: float, duration: float, length: float) -> None:
    segments = plan_segments(start, start + duration, length)
    assert (segments[0].start_s, segments[-1].end_s) == (pytest.approx(start, abs=1e-6), start + duration)
    assert all(a.end_s == b.start_s for a, b in pairwise(segments))
    sizes = [segment.end_s - segment.start_s for segment in segments]
    assert all(size == pytest.approx(length, abs=2e-6) for size in sizes[:-1])
    assert sizes[-1] == pytest.approx(duration, abs=2e-6) if len(sizes) == 1 else sizes[-1] >= length / 2 - 1e-5
    assert sizes[-1] < 1.5 * length + 1e-5


def test_lengths_that_cannot_work() -> None:
    for length in (0.0, -1.0, 0.009, math.nan, math.inf):
        with pytest.raises(ConfigError, match="positive number of seconds"):
            plan_segments(0.0, 10.0, length)
    with pytest.raises(MediaError, match="more than 100,000 segments"):
        plan_segments(0.0, 1e9, 60.0)


class Numbers:
    """A source whose frames are their numbers; counts how often it is read, and what is lost of it."""

    def __init__(self, lost: Sequence[int] = ()) -> None:
        self.name, self.height, self.width = "numbers", 1, 1
        self.timeline = regular_timeline(100, 25.0)
        self.notes: tuple[str, ...] = ()
        self.num_lost = self.passes = self.decoded = 0
        self._lost = lost

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        self.passes += 1
        self.num_lost = 0
        for index in indices:
            self.decoded += 1
            self.num_lost += index in self._lost
            yield np.full((1, 1, 3), index, np.uint8)


def numbers(frames: Iterator[np.ndarray]) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def test_parts_in_order_are_one_pass() -> None:
    source = Numbers(lost=[4, 9])
    shared = OnePass(source, [0, 2, 4, 5, 9, 20])
    assert numbers(shared.frames([0, 2, 4])) == [0, 2, 4]
    assert shared.num_lost == 1
    assert numbers(shared.frames([4, 5])) == [4, 5]  # the border's frame belongs to both
    assert shared.num_lost == 1
    assert numbers(shared.frames([20])) == [20]  # a part left out
    assert shared.num_lost == 0
    assert (source.passes, source.decoded) == (1, 6)


def test_parts_in_any_order_are_right() -> None:
    source = Numbers()
    shared = OnePass(source, [0, 2, 4, 5, 9, 20])
    half = shared.frames([4, 5, 9])
    assert int(next(half)[0, 0, 0]) == 4  # given up here
    for part in ([0, 2], [9, 20], [5], [0, 2, 4, 5, 9, 20]):
        assert numbers(shared.frames(part)) == part
    assert source.passes == 4


@pytest.mark.parametrize("options", [LONG_GOP, OPEN_GOP])
def test_frames_of_parts_are_those_of_readers_of_their_own(options: dict[str, str], tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(250), options=options)
    spans = [(0.0, 3.0), (3.0, 6.5), (6.5, 10.0)]
    plan = SamplingPlan(fps=2.0)
    parts = open_video(path, plan).parts(spans)
    for (start, end), part in zip(spans, parts, strict=True):
        alone = open_video(path, SamplingPlan(fps=2.0, start_s=start, end_s=end)).read()
        together = part.read()
        assert together.timestamps_s == alone.timestamps_s
        difference = np.abs(together.frames.astype(int) - alone.frames)
        assert difference.max() == 0, f"max {difference.max()}, mean {difference.mean()}"


def test_a_file_is_opened_once_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(250))
    reader = open_video(path)
    opened = []
    real = av.open

    def counted(*arguments: object, **options: object) -> object:
        opened.append(arguments)
        return real(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("vl3edge.runtime.media.packets.av.open", counted)
    for part in reader.parts([(float(start), start + 1.0) for start in range(10)]):
        part.read()
    assert len(opened) == 1


def test_segments_of_a_stream_that_begins_late(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mkv", range(75, 200), time_base=Fraction(1, 25))
    reader = open_video(path)
    begin = reader.timestamps_s[0]
    segments = plan_segments(begin, reader.duration_s, 2.0)
    parts = reader.parts([(segment.start_s, segment.end_s) for segment in segments])
    assert [part.timestamps_s[0] for part in parts] == [segment.start_s for segment in segments]


def test_an_image_has_no_parts() -> None:
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    image = model.open(np.zeros((56, 56, 3), np.uint8))
    with pytest.raises(ConfigError, match="cannot be split"):
        image.parts([(0.0, 1.0)])
